"""The table as Markdown, and where it stands in a document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from anyengine_conformance.parity_table.judging import Report
from anyengine_conformance.parity_table.prompts import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anyengine_conformance.parity_table.judging import Figures, Row

__all__ = ["table", "written"]

_HEADINGS = (
    "configuration",
    "engine",
    "data type, device",
    "answers that part",
    "first divergence: earliest, median",
    "other tokens than the oracle's",
    "worst of them",
    "defects",
    "log-probabilities off by: mean, most",
)
_BLOCK = re.compile(r"(<!-- parity table: (\S+) -->\n).*?(<!-- end of the parity table -->)", re.DOTALL)


def written(text: str, root: Path) -> str:
    """A document in which every marked place has the table of the report that it names.

    A place begins with ``<!-- parity table: results/….json -->`` and ends with ``<!-- end of the parity table -->``.

    Args:
        text: of the document.
        root: folder that the names of reports are relative to.
    """

    def block(match: re.Match[str]) -> str:
        report = msgspec.json.decode((root / match[2]).read_bytes(), type=Report)
        return f"{match[1]}{table(report)}{match[3]}"

    return _BLOCK.sub(block, text)


def table(report: Report) -> str:
    """What was judged, on what, a table of all configurations, the kinds of prompts, and each defect."""
    prompts = report.rows[0].all.prompts
    length = report.rows[0].configuration.max_tokens
    oracle = report.oracle
    places = dict.fromkeys(_place(row) for row in report.rows)
    basis = (
        f"{report.model}, {prompts} prompts, greedy, up to {length} tokens each. Oracle: {oracle['engine']} "
        f"{oracle['engine_version']} in float32 on {oracle['device']}. Answered {'; '.join(places)}."
    )
    parts = [
        basis,
        _rows(_HEADINGS, [_row(row) for row in report.rows]),
        "By kind of prompt: answers that part (median first divergence).",
        _rows(
            ("configuration", *(f"{kind}, {report.rows[0].kinds[kind].prompts}" for kind in KINDS)),
            [(row.configuration.label, *(_parting(row.kinds[kind]) for kind in KINDS)) for row in report.rows],
        ),
    ]
    defects = [(row, defect) for row in report.rows for defect in row.defects]
    if defects:
        parts.append("Defects:")
        parts.append(
            _rows(
                ("configuration", "prompt", "token", "nats behind", "seen", "expected"),
                [
                    (
                        row.configuration.label,
                        each.prompt,
                        str(each.step),
                        "ending" if each.behind is None else f"{each.behind:.3f}",
                        each.seen,
                        each.expected,
                    )
                    for row, each in defects
                ],
            )
        )
    return "\n\n".join(parts) + "\n"


def _place(row: Row) -> str:
    """Where, and on what day."""
    machine = row.configuration.environment
    where = ", ".join(dict.fromkeys(machine["accelerators"])) or f"a CPU ({machine['cpus']} cores)"
    return f"on {where}, {row.configuration.date[:10]}"


def _row(row: Row) -> tuple[str, ...]:
    given, found = row.configuration, row.all
    off = "not given" if found.error_mean is None else f"{found.error_mean:.2g}, {found.error_max:.2g} nats"
    first = "-" if found.first_divergence is None else "{}, {:g}".format(*found.first_divergence)
    return (
        given.label,
        f"{given.engine} {given.engine_version or ''}".rstrip(),
        f"{given.dtype}, {given.device}",
        f"{found.parted} of {found.prompts}",
        first,
        f"{found.not_best} of {found.tokens}",
        f"{found.largest_loss:.4f} of {row.gap:g} nats allowed" if found.not_best else "-",
        str(found.defects),
        off,
    )


def _parting(figures: Figures) -> str:
    if figures.first_divergence is None:
        return "0"
    return f"{figures.parted} ({figures.first_divergence[1]:g})"


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
