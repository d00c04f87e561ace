"""What a caller may have meant by a name that there is not."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["suggested"]

#: How alike two names are at least, of 1; difflib's own 0.6 takes `temprature` for `chat_template`.
_CLOSE = 0.7


def suggested(name: str, known: Iterable[str], there_are: str, shown: Callable[[str], str] = repr) -> str:
    """The end of a message about an unknown name: which one was meant, where one is close, and which there are.

    Args:
        name: what was given.
        known: the names that there are.
        there_are: a clause that lists them.
        shown: how the one that was meant is written.
    """
    near = get_close_matches(name, list(known), 1, _CLOSE)
    return f"did you mean {shown(near[0])}? {there_are[:1].upper()}{there_are[1:]}" if near else there_are
