"""What changed between two reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from anyengine_conformance.results import Report

__all__ = ["Change", "compare"]


class Change(Struct):
    """One check whose outcome differs.

    Attributes:
        id: of the check.
        old: outcome before; None for a check that was not there.
        new: outcome after; None for one that is not there any more.
        kind: ``worse`` if it was as expected and is not now, ``better`` for the reverse, else ``other``.
        reason: of the new outcome.
    """

    id: str
    old: str | None
    new: str | None
    kind: Literal["worse", "better", "other"]
    reason: str = ""


def compare(old: Report, new: Report) -> list[Change]:
    """The changes, the bad ones first.

    A check that is not there any more counts as worse where it was as expected: what is not run proves nothing.
    """
    before = {result.id: result for result in old.results}
    after = {result.id: result for result in new.results}
    changes: list[Change] = []
    for identity in dict.fromkeys((*before, *after)):
        first, second = before.get(identity), after.get(identity)
        if first is not None and second is not None and first.outcome == second.outcome:
            continue
        good = (first is None or first.good, second is not None and second.good)
        kind = "worse" if good == (True, False) else "better" if good == (False, True) else "other"
        changes.append(
            Change(
                identity,
                None if first is None else first.outcome,
                None if second is None else second.outcome,
                kind,
                "" if second is None else second.reason,
            )
        )
    return sorted(changes, key=lambda change: ("worse", "other", "better").index(change.kind))
