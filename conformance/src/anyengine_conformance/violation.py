"""How a check says that an engine broke the contract, or that it could not tell."""

from __future__ import annotations

import re
import reprlib

__all__ = ["NotApplicable", "Violation", "logged", "shown", "without_places"]

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 300
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 24
_REPR.maxlevel = 5

#: All but the last part of an absolute path in quotes.
_PLACE = re.compile(r"""(?<=['"])/(?:[^'"/\n]+/)+(?=[^'"/\n]*['"])""")
#: The same of one without quotes, as in a program's last words, below a folder that machines have; no path of HTTP.
_BARE_PLACE = re.compile(
    r"""(?:(?<=file://)|(?<![\w/.~'"…]))/"""
    r"""(?:Users|data|dev|etc|home|media|mnt|opt|private|proc|root|run|scratch|srv|tmp|usr|var|work|workspace)/"""
    r"""(?:[^\s'"/:,;()]+/)*(?=[^\s'"/])"""
)


def without_places(call: str) -> str:
    """A call as a report tells it: of its paths the last part, for reports are shown to others."""
    return _PLACE.sub("…/", call)


def logged(words: str) -> str:
    """The same of an error or a log, where paths stand without quotes as well."""
    return _BARE_PLACE.sub("…/", without_places(words))


def shown(value: object) -> str:
    """A value for a person: short, on one line, whatever it is."""
    try:
        return _REPR.repr(value)
    except Exception as error:  # noqa: BLE001 a foreign repr must not hide what was wrong
        return f"a {type(value).__name__} whose repr raised {type(error).__name__}"


class Violation(AssertionError):
    """The engine does not keep the contract.

    Attributes:
        expected: what it should have done.
        seen: what it did.
        asked: the calls that led to it; the runner fills them in where the check did not.
        advice: what to do about it; the check's own where empty.
        example: the smallest input that fails, of a check that tries many.
    """

    def __init__(self, *, expected: str, seen: str, asked: str = "", advice: str = "", example: str = "") -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected = expected
        self.seen = seen
        self.asked = asked
        self.advice = advice
        self.example = example


class NotApplicable(Exception):
    """The check says nothing about this subject, and not for want of the engine: its model has no chat template."""
