"""The conformance suite of anyengine: whether an engine keeps the uniform API, check by check.

``anyengine conformance run ENGINE`` runs it; ``pytest --pyargs anyengine_conformance.suite --engine ENGINE`` does the
same under pytest; :class:`Runner` does it from a program.
"""

from anyengine_conformance.check import Check, all_checks, check, family, variant
from anyengine_conformance.context import Context, Streamed
from anyengine_conformance.report import read_report, write_report
from anyengine_conformance.results import Report, Result
from anyengine_conformance.runner import Runner, select
from anyengine_conformance.settings import Settings, read_expected_failures, read_settings
from anyengine_conformance.violation import NotApplicable, Violation

__all__ = [
    "Check",
    "Context",
    "NotApplicable",
    "Report",
    "Result",
    "Runner",
    "Settings",
    "Streamed",
    "Violation",
    "all_checks",
    "check",
    "family",
    "read_expected_failures",
    "read_report",
    "read_settings",
    "select",
    "variant",
    "write_report",
]
