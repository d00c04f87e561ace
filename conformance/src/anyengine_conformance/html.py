"""A report as one page that needs no server."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anyengine_conformance.causes import by_cause, grouped, told
from anyengine_conformance.check import family_title
from anyengine_conformance.results import OUTCOMES
from anyengine_conformance.unproven import NAME_ONE, reason, without_oracle

if TYPE_CHECKING:
    from markupsafe import Markup

    from anyengine_conformance.results import Outcome, Report, Result

__all__ = ["render"]

#: The legend: what an outcome says.
MEANINGS: dict[Outcome, str] = {
    "failed": "the engine does not keep it, or does not refuse what it does not declare",
    "error": "the engine did not load, died or does not answer, or the suite made a mistake",
    "xpassed": "its entry in xfails.toml is to be deleted",
    "xfailed": "it is on record in xfails.toml, with the reason that stands beside it",
    "not-run": "the suite could not tell; why stands beside it",
    "unsupported": "an engine may leave things out, but it has to say so and refuse them by name: that is checked too",
    "passed": "the engine keeps it",
}


def render(report: Report) -> str:
    """HTML with everything in it: summary, failures, why others did not pass, then the families, failures first."""
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415 heavy for `--help`

    environment = Environment(
        loader=PackageLoader("anyengine_conformance", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "id": _id, "moment": _moment}
    bad = by_cause(report)
    left = reason(report, mark="`")
    families = dict.fromkeys(result.family for result in report.results)
    return environment.get_template("report.html").render(
        report=report,
        outcomes=OUTCOMES,
        meanings=MEANINGS,
        counts=report.counts(),
        verdict=_verdict(report, proven=not left),
        bad=grouped(bad),
        cause=told(bad),
        reasons=_reasons(report),
        unproven=left,
        advice=NAME_ONE if without_oracle(report) else "",
        families=[(name, family_title(name), _worst_first(report, name)) for name in families],
    )


def _verdict(report: Report, *, proven: bool) -> tuple[str, str]:
    """What the headline says, and the outcome whose colour it has."""
    if not report.good:
        ended = report.stopped and all(result.good for result in report.results)
        return "not finished" if ended else "does not keep the contract", "failed"
    whole = report.suite.complete and proven
    words = "keeps the contract" if whole else "keeps what was checked"
    known = report.counts().get("xfailed", 0)
    words += f" but for {known} known failure{'s' if known > 1 else ''}" if known else ""
    return words, "passed" if whole and not known else "xfailed"


def _reasons(report: Report) -> list[tuple[Outcome, int, list[tuple[str, list[str]]]]]:
    """For each outcome that is as expected, and not passed: its checks, and the reasons, most frequent first."""
    found: dict[Outcome, dict[str, list[str]]] = {outcome: {} for outcome in OUTCOMES}
    for result in report.results:
        if result.good and result.outcome != "passed":
            found[result.outcome].setdefault(result.reason, []).append(result.id)
    return [
        (outcome, sum(map(len, why.values())), sorted(why.items(), key=lambda one: -len(one[1])))
        for outcome, why in found.items()
        if why
    ]


def _worst_first(report: Report, family: str) -> list[Result]:
    return sorted((result for result in report.results if result.family == family), key=lambda result: result.good)


def _code(text: str) -> Markup:
    """Escaped, and what stands between backticks as code."""
    from markupsafe import Markup, escape  # noqa: PLC0415 it comes with jinja2

    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 it is escaped


def _id(text: str) -> Markup:
    """As code that breaks behind the family, and only where that is not enough at a hyphen."""
    from markupsafe import Markup  # noqa: PLC0415 it comes with jinja2

    family, point, name = text.partition(".")
    return Markup('<code class="id"><span>{}{}</span><span>{}</span></code>').format(family, point, name)


def _moment(iso: str) -> str:
    """A time for people; as it is where it is none, for a report may be somebody else's."""
    try:
        return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return iso
