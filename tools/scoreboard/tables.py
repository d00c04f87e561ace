"""What the sections under the scoreboard are made of: rows of numbers, each with the report that it is from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from scoreboard.charts import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from scoreboard.reports import Interval

__all__ = ["Entry", "Table", "said"]


@dataclass(frozen=True)
class Entry:
    """A row.

    Attributes:
        name: what was measured.
        note: on what, in which version, when.
        cells: texts, and plots.
        report: where the numbers are from.
        met: whether its bar is kept; None where there is none.
    """

    name: str
    note: str
    cells: Sequence[str | Markup]
    report: str
    met: bool | None = None


@dataclass(frozen=True)
class Table:
    """Rows under their headings; the first heading is that of the names."""

    caption: str | Markup
    headings: Sequence[str | Markup]
    rows: Sequence[Entry]
    chart: Markup | None = None

    @property
    def judged(self) -> bool:
        """Whether any of them has a bar."""
        return any(row.met is not None for row in self.rows)

    @property
    def groups(self) -> list[list[Entry]]:
        """Rows that share name, note and report, which are written once."""
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: (row.name, row.note, row.report))]


def said(value: Interval, decimals: int | None = None) -> str:
    """Median and interval; with so many decimals where more count than are shown else."""
    median, low, high = (
        number(each) if decimals is None else f"{each:.{decimals}f}" for each in (value.median, value.low, value.high)
    )
    return f"{median} [{low}, {high}]"
