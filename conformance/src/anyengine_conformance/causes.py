"""Which of several failures is the cause, and which are its consequences.

The selftest proves of every fault which core checks it trips, and that stands in ``also_fails``. Read the other way
round it is a table of symptoms: of the checks that failed, the one whose fault trips those very checks comes first.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from anyengine_conformance.broken import all_faults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine_conformance.results import Report, Result

__all__ = ["by_cause", "told"]

#: How the reason of a check begins whose engine is the subject's own, without any change.
DID_NOT_LOAD = ("the variant 'default' did not load", "loading the variant 'default'")


def by_cause(report: Report) -> list[Result]:
    """What is not as expected: failures before the rest, causes before consequences, core before extensions."""
    bad = [result for result in report.results if not result.good]
    core = {result.id for result in bad if result.tier == "core"}
    ran = {result.id for result in report.results}
    likeness = {result.id: _likeness(result.id, core | {result.id}, ran) for result in bad}

    def place(result: Result) -> tuple[bool, bool, float, bool]:
        return not _unloaded(result), result.outcome != "failed", -likeness[result.id], result.tier != "core"

    return sorted(bad, key=place)


def told(ordered: Sequence[Result]) -> str:
    """How many of the failures the first one explains, in a sentence; empty where it explains none."""
    if not ordered:
        return ""
    if _unloaded(ordered[0]):
        return "the engine did not load, so most checks could not run"
    first, others = ordered[0].id, {result.id for result in ordered[1:] if result.tier == "core"}
    most = max((len(trips & others) for trips in _trips().get(first, ())), default=0)
    if most <= len(others) / 2:
        return ""
    return (
        f"{first} is the likely cause: such a fault is known to trip {most} of the other {len(others)} core checks too"
    )


def _unloaded(result: Result) -> bool:
    return result.outcome == "error" and result.reason.startswith(DID_NOT_LOAD)


def _likeness(check: str, failed: set[str], ran: set[str]) -> float:
    """How nearly the core checks that failed are those of a run that a fault of this check trips; 1 if exactly."""
    return max((len(trips & failed) / len(trips & ran | failed) for trips in _trips().get(check, ())), default=0.0)


@cache
def _trips() -> dict[str, list[set[str]]]:
    """Check → for each of its faults the checks that fail."""
    found: defaultdict[str, list[set[str]]] = defaultdict(list)
    for made in all_faults():
        found[made.check].append({made.check, *made.also_fails})
    return found
