"""A report as one page that needs no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine_conformance.causes import by_cause, grouped, told
from anyengine_conformance.check import family_title
from anyengine_conformance.oracle import NO_ORACLE
from anyengine_conformance.results import OUTCOMES

if TYPE_CHECKING:
    from anyengine_conformance.results import Report

__all__ = ["render"]


def render(report: Report) -> str:
    """HTML with everything in it: summary, failures first, then every family."""
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415 heavy for `--help`

    environment = Environment(
        loader=PackageLoader("anyengine_conformance", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bad = by_cause(report)
    families = dict.fromkeys(result.family for result in report.results)
    return environment.get_template("report.html").render(
        report=report,
        outcomes=OUTCOMES,
        counts=report.counts(),
        bad=grouped(bad),
        cause=told(bad),
        exact=report.suite.oracle != NO_ORACLE,
        families=[
            (name, family_title(name), [result for result in report.results if result.family == name])
            for name in families
        ],
    )
