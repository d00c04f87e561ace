"""A badge, from a validated report only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from anyengine_conformance.oracle import NO_ORACLE
from anyengine_conformance.report import BadReport
from anyengine_conformance.unproven import reason, unproven

if TYPE_CHECKING:
    from anyengine_conformance.results import Report

__all__ = ["badge", "statement"]

_GREEN, _RED = "#2f7d32", "#b3261e"
#: Width of a character of the badge's font, about; the text is told to fit.
_CHARACTER = 6.6
_PADDING = 12


def statement(report: Report) -> tuple[str, bool]:
    """What the badge says, and whether it is good news.

    Raises:
        BadReport: the report is of a selection of checks, of a run that ended early, of a profile that does not repeat
            itself, or without oracle.
    """
    if report.stopped:
        raise BadReport(f"a badge needs a report of a whole run; this one was {report.stopped}", field="stopped")
    if not report.suite.complete:
        raise BadReport("a badge needs a report of the whole suite; this one is of a selection", field="suite.complete")
    if report.suite.profile != "certify":
        raise BadReport("a badge needs the profile certify, which repeats itself", field="suite.profile")
    if report.suite.oracle == NO_ORACLE:
        why = reason(report) or "nothing was compared with exact scores"
        raise BadReport(f"a badge needs an oracle: {why}", field="suite.oracle")
    if not report.good:
        bad = sum(not result.good for result in report.results)
        return f"{bad} of {len(report.results)} not kept", False
    passed = report.counts().get("passed", 0)
    expected = report.counts().get("xfailed", 0)
    left = len(unproven(report))
    said = f"{passed} passed" + (f", {expected} known failure{'s' if expected > 1 else ''}" if expected else "")
    return said + (f", {left} declared field{'s' if left > 1 else ''} unproven" if left else ""), True


def badge(report: Report) -> str:
    """An SVG: the suite and its version on the left, the outcome on the right."""
    text, good = statement(report)
    simulated = " (simulated)" if report.subject.simulated else ""
    left, right = f"anyengine {report.suite.version}", f"{report.subject.engine}{simulated}: {text}"
    widths = [round(len(part) * _CHARACTER) + _PADDING for part in (left, right)]
    title = escape(f"{left}: {right}")
    fills = ("#444", _GREEN if good else _RED)
    cells = "".join(
        f'<rect x="{x}" width="{width}" height="20" fill="{fill}"/><text x="{x + width / 2}" y="14" '
        f'textLength="{width - _PADDING}" lengthAdjust="spacingAndGlyphs">{escape(part)}</text>'
        for x, width, fill, part in zip((0, widths[0]), widths, fills, (left, right), strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="20" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
        '<clipPath id="r"><rect width="100%" height="20" rx="3"/></clipPath>'
        '<g clip-path="url(#r)" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#fff" '
        'text-anchor="middle">'
        f"{cells}</g></svg>\n"
    )
