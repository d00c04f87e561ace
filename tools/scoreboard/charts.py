"""Plots as SVG that takes its colours from the page, so that they follow light and dark.

Two kinds suffice: a strip, one interval on a scale, for a cell of a table; and lines over a logarithmic axis. Own code
because it is little: a plotting library would bring tens of megabytes, and colours that do not follow the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scoreboard.reports import Interval

__all__ = ["Line", "Scale", "axis", "lines", "number", "strip"]

_WIDTH, _HEIGHT, _MARGIN = 240, 24, 20
#: A line's sign, so that none is told by its colour alone; a path round the origin.
_SIGNS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-4-4h8v8h-8z",
    "M0-5l5 9h-10z",
    "M0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z",
    "M0 5l5-9h-10z",
    "M-5-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
)


def number(value: float) -> str:
    """Three digits, without an exponent where that is short."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:  # noqa: PLR2004 what reads well
        return f"{value:#.3g}".rstrip(".")
    return f"{value:,.0f}" if abs(value) >= 1 else f"{value:.1e}"


def _tick(value: float) -> str:
    return f"{value:,.10g}"


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: smallest value.
        high: largest.
        ticks: values that are written on the axis.
        logarithmic: or linear.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float, start: float = _MARGIN, end: float = _WIDTH - _MARGIN) -> float:
        """Its place between two; what lies outside the scale is put at its end."""
        low, high, at = (math.log(max(v, 1e-12)) if self.logarithmic else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return round(start + share * (end - start), 1)

    @classmethod
    def over(cls, values: Sequence[float], *, logarithmic: bool = False) -> Scale:
        """Round bounds about all the values; of a logarithmic one, powers of ten."""
        low, high = min(values), max(values)
        if logarithmic:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            last = max(last, first + 1)
            return cls(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1)), logarithmic)
        step = _step((high - low) or 1)
        first, last = math.floor(low / step), math.ceil(high / step)
        last = max(last, first + 1)
        ticks = tuple(round(place * step, 10) for place in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)


def _step(span: float) -> float:
    """A round distance of which about four fit."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _svg(width: float, height: float, words: str, parts: Sequence[str], kind: str) -> Markup:
    inside = Markup("").join(Markup(part) for part in parts)  # noqa: S704 of numbers and escaped words
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(kind, width, height, width, height, words, inside)


def strip(value: Interval, scale: Scale, words: str, *, line: float | None = None) -> Markup:
    """A dot, its interval, and its bars: a long tick for the median's, a short one for the lower bound's.

    Args:
        value: with what it has to keep.
        scale: of the column.
        words: what it says.
        line: a value to draw a rule at: that of no difference.
    """
    middle = _HEIGHT / 2
    parts = [f'<path class="grid" d="M{scale(tick)} 0V{_HEIGHT}"/>' for tick in scale.ticks]
    if line is not None:
        parts.append(f'<path class="rule" d="M{scale(line)} 0V{_HEIGHT}"/>')
    for bar, half in ((value.bar, 9), (value.bar_low, 5)):
        if bar is not None:
            parts.append(f'<path class="bar" d="M{scale(bar)} {middle - half}V{middle + half}"/>')
    if value.low != value.high:
        parts.append(f'<path class="range" d="M{scale(value.low)} {middle}H{scale(value.high)}"/>')
    parts.append(f'<circle class="dot" cx="{scale(value.median)}" cy="{middle}" r="4"/>')
    return _svg(_WIDTH, _HEIGHT, words, parts, "strip")


def axis(scale: Scale, words: str) -> Markup:
    """The numbers above a column of strips."""
    parts = [f'<text x="{scale(tick)}" y="12" text-anchor="middle">{_tick(tick)}</text>' for tick in scale.ticks]
    return _svg(_WIDTH, 16, words, parts, "strip")


@dataclass(frozen=True)
class Line:
    """Points of one report: place on the horizontal axis → value."""

    label: str
    report: str
    points: dict[int, Interval]


def lines(given: Sequence[Line], words: str, across: str, up: str) -> Markup:
    """Lines with intervals over two logarithmic axes, each with a sign of its own and its name at its end."""
    left, right, top, bottom, width, height = 64, 190, 24, 44, 720, 360
    places = sorted({place for line in given for place in line.points})
    values = [bound for line in given for each in line.points.values() for bound in (each.low, each.high)]
    xs, ys = (
        Scale(places[0], max(places[-1], places[0] + 1), (), logarithmic=True),
        Scale.over(values, logarithmic=True),
    )

    def x(place: float) -> float:
        return xs(place, left, width - right)

    def y(value: float) -> float:
        return ys(value, height - bottom, top)

    parts: list[str] = []
    for tick in ys.ticks:
        parts.append(f'<path class="grid" d="M{left} {y(tick)}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{_tick(tick)}</text>')
    for place in places:
        parts.append(f'<path class="grid" d="M{x(place)} {top}V{height - bottom}"/>')
        parts.append(f'<text x="{x(place)}" y="{height - bottom + 18}" text-anchor="middle">{place}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(across)}</text>'
    )
    parts.append(f'<text x="4" y="14">{escape(up)}</text>')
    ends = _apart([y(line.points[max(line.points)].median) for line in given])
    for index, line in enumerate(given):
        colour, sign = f"s{index % len(_SIGNS)}", _SIGNS[index % len(_SIGNS)]
        path = "L".join(f"{x(place)} {y(each.median)}" for place, each in sorted(line.points.items()))
        parts.append(f'<g class="{colour}"><path class="line" d="M{path}"/>')
        for place, each in sorted(line.points.items()):
            said = (
                f"{line.label}, {place}: {number(each.median)} [{number(each.low)}, {number(each.high)}]; {line.report}"
            )
            parts.append(f'<path class="range" d="M{x(place)} {y(each.low)}V{y(each.high)}"/>')
            parts.append(
                f'<path class="sign" transform="translate({x(place)} {y(each.median)})" d="{sign}">'
                f"<title>{escape(said)}</title></path>"
            )
        parts.append(f'<text x="{x(max(line.points)) + 10}" y="{ends[index] + 4}">{escape(line.label)}</text></g>')
    return _svg(width, height, words, parts, "plot")


def _apart(wanted: list[float], distance: float = 16) -> list[float]:
    """Places near those wanted, none closer to the next than so."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    found = list(wanted)
    for before, after in pairwise(order):
        found[after] = max(found[after], found[before] + distance)
    return found
