"""The sections about what is computed: parity with the model, and the drift of quantised checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

from scoreboard.charts import Scale, axis, number, strip
from scoreboard.conformance import NOT_RECORDED, label
from scoreboard.reports import Interval, Parity, Quantized
from scoreboard.tables import Entry, Table, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine_conformance.parity_table.judging import Row

    from scoreboard.reports import File, Found

__all__ = ["drift", "parity"]


def parity(found: Found) -> list[Table]:
    """Whose greedy answers are the model's own; one table a report."""
    headings = (
        "configuration",
        "answers that part",
        "tokens that are not the oracle's best",
        "worst of them, nats",
        "log-probabilities off by, nats",
        "defects",
    )
    return [_parity(file, headings) for file in found.of(Parity)]


def _parity(file: File[Parity], headings: Sequence[str]) -> Table:
    report = file.content
    rows = [_answers(row, file.name) for row in report.rows]
    asked = f"{report.model}, {report.rows[0].all.prompts} prompts, greedy" if report.rows else report.model
    oracle = f"{report.oracle['engine']} in {report.oracle['dtype']}"
    caption = Markup(
        "{}. Each token is judged behind the tokens before it by the oracle, {}; a defect is a token further behind "
        "the best one than all but rare roundings explain: a reason to look, and not always a bug; "
        '<a href="parity.md">the page on parity</a> says what was found.'
    ).format(asked, oracle)
    return Table(caption, headings, rows)


def _answers(row: Row, report: str) -> Entry:
    each, given = row.all, row.configuration
    off = "not given"
    if each.error_mean is not None and each.error_max is not None:
        off = f"{number(each.error_mean)}, at most {number(each.error_max)}"
    cells = (
        f"{each.parted} of {each.prompts}",
        f"{each.not_best:,} of {each.tokens:,}",
        f"{number(each.largest_loss)} of {row.gap:g} allowed" if each.not_best else "-",
        off,
        str(each.defects),
    )
    gpus = given.environment["accelerators"]
    device = gpus[0].split(",")[0] if gpus and "cpu" not in (given.device or "") else given.device
    version = f"{given.engine} {given.engine_version or NOT_RECORDED}"
    note = ", ".join((version, given.dtype or NOT_RECORDED, device or NOT_RECORDED, given.date[:10]))
    return Entry(given.label, note, cells, report, each.defects == 0)


def drift(found: Found) -> list[Table]:
    """Quantised checkpoints: what each costs in its engine."""
    every = [(file.name, row) for file in found.of(list[Quantized]) for row in file.content]
    if not every:
        return []
    every.sort(key=lambda pair: (pair[1].model, math.inf if pair[1].drift is None else pair[1].drift.mean_kl))
    # What does not drift at all has no place on it but its end.
    losses = [row.drift.mean_kl for _, row in every if row.drift is not None and row.drift.mean_kl > 0]
    scale = Scale.over(losses or [1e-3], logarithmic=True)
    headings = (
        "checkpoint",
        "perplexity ratio",
        "same best token",
        "speed over float, one at a time",
        "many together",
        "mean KL, nats",
        axis(scale, "mean KL, nats"),
    )
    caption = "How far scores drift on held-out texts, least first; KL on a logarithmic scale."
    return [Table(caption, headings, [_drift(name, row, scale) for name, row in every])]


def _drift(report: str, row: Quantized, scale: Scale) -> Entry:
    each = row.drift
    name = f"{row.model}: {row.made_as} by {row.made_by}"
    speeds = [said(row.speed[how]) if row.speed and how in row.speed else "not timed" for how in ("alone", "together")]
    if each is None:
        cells: tuple[str | Markup, ...] = ("not measured", "", *speeds, "", "")
    else:
        point = Interval(median=each.mean_kl, low=each.mean_kl, high=each.mean_kl)
        drawn = strip(point, scale, f"{name} in {row.engine}: mean KL {number(each.mean_kl)} nats")
        ratio, same = f"{each.perplexity_ratio:.3f}", f"{each.top1_agreement:.1%}"
        cells = (ratio, same, *speeds, number(each.mean_kl), drawn)
    against = "its own float scores" if row.against == row.engine else f"float scores of {row.against}"
    place = f"in {row.label or label(row.engine, {})} {row.engine_version or ''}".rstrip()
    tokens = f"; {each.tokens:,} tokens" if each is not None else ""
    return Entry(name, f"{place} on {row.device}, {row.dtype}; against {against}{tokens}, {row.date}", cells, report)
