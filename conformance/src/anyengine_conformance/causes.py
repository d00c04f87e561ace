"""Which of several failures is the cause, and which are its consequences.

The selftest proves of every fault which core checks it trips, of wide ones which checks at all, and that stands in
``also_fails``. Read the other way round it is a table of symptoms: of the checks that failed, the one whose fault trips
those very checks comes first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from anyengine_conformance.broken import all_faults
from anyengine_conformance.probe import NOT_RUN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine_conformance.broken import Fault
    from anyengine_conformance.results import Report, Result

__all__ = ["by_cause", "grouped", "told"]

#: What a plugin did, wherever it shows: raised, or returned as an exception.
_BUG = re.compile(r"PluginError(?: with field '[^']*')?(?:: |\(['\"])(.*?)(?:['\"]\)|$)")
#: What differs between errors that are the same.
_NUMBERS = re.compile(r"\d+|(?<=the variant )'[^']*'")
#: How the reason of a check begins whose engine is the subject's own, without any change.
DID_NOT_LOAD = ("the variant 'default' did not load", "loading the variant 'default'")


def by_cause(report: Report) -> list[Result]:
    """What is not as expected: failures before the rest, causes before consequences, core before extensions."""
    bad = [result for result in report.results if not result.good]
    failed = {result.id for result in bad}
    # What was not run, or refused, could not have failed: whether a fault trips it is no sign of anything.
    ran = {result.id for result in report.results if result.outcome not in ("not-run", "unsupported")}
    likeness = {result.id: _likeness(result.id, failed, ran) for result in bad}

    def place(result: Result) -> tuple[bool, bool, float, bool]:
        if _said(result, (NOT_RUN, *DID_NOT_LOAD)):  # first the one that found out, which took longest
            return False, False, -round(result.duration), False
        return True, result.outcome != "failed", -likeness[result.id], result.tier != "core"

    return sorted(bad, key=place)


def told(ordered: Sequence[Result]) -> str:
    """How many of the failures the first one explains, in a sentence; empty where it explains none."""
    if not ordered:
        return ""
    if _said(ordered[0], DID_NOT_LOAD):
        return "the engine did not load, so most checks could not run"
    if _said(ordered[0], (NOT_RUN,)):
        left = sum(_said(result, (NOT_RUN,)) for result in ordered)
        return f"the engine does not answer, so {left} check{'s were' if left > 1 else ' was'} not run"
    first = ordered[0].id
    every = {result.id for result in ordered[1:]}
    core = {result.id for result in ordered[1:] if result.tier == "core"}
    best, said = 0.5, ""
    for fault in _faults_of().get(first, ()):
        # What a fault makes of extensions is known of the wide ones only.
        others, what = (every, "failed check") if fault.wide else (core, "core check")
        most = len(others.intersection(fault.also_fails))
        if others and most / len(others) > best:
            best = most / len(others)
            said = f"such a fault is known to trip {_share(most, len(others), what)} too"
    return f"{first} is the likely cause: {said}" if said else ""


def _share(most: int, others: int, what: str) -> str:
    if most < others:
        return f"{most} of the other {others} {what}s"
    return f"the other {what}" if others == 1 else f"all the other {others} {what}s"


def grouped(ordered: Sequence[Result]) -> list[list[Result]]:
    """Failures that ended in the same error, but for the numbers in it, are told once."""
    groups: dict[str, list[Result]] = {}
    for result in ordered:
        bug = _BUG.search(result.seen or result.reason)
        same = bug.group(1) if bug else result.seen if result.expected == "no error" else result.seen and result.id
        groups.setdefault(_NUMBERS.sub("#", same or result.reason), []).append(result)
    return list(groups.values())


def _said(result: Result, beginnings: tuple[str, ...]) -> bool:
    return result.outcome == "error" and result.reason.startswith(beginnings)


def _likeness(check: str, failed: set[str], ran: set[str]) -> float:
    """How nearly the checks that failed are those of a run that a fault of this check trips; 1 if exactly."""
    trips = [{check, *fault.also_fails} for fault in _faults_of().get(check, ())]
    return max((len(one & failed) / len(one & ran | failed) for one in trips), default=0.0)


@cache
def _faults_of() -> dict[str, list[Fault]]:
    """Check → its faults."""
    found: defaultdict[str, list[Fault]] = defaultdict(list)
    for made in all_faults():
        found[made.check].append(made)
    return found
