"""Stop strings, found in text that comes in pieces; the result does not depend on where the pieces end.

The search is that of Aho and Corasick, "Efficient string matching: an aid to bibliographic search" (1975): one state,
the longest suffix of the text that begins some stop, whatever the number of stops.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyengine.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StopMatch", "StopMatcher"]


@dataclass(frozen=True, slots=True)
class StopMatch:
    """The occurrence of a stop string that ends the text.

    Attributes:
        stop: the string.
        start: where it begins, in characters from the start of the whole text.
        end: where it ends, exclusive.
    """

    stop: str
    start: int
    end: int


@dataclass(slots=True, eq=False)
class _Node:
    """A prefix of some stop."""

    depth: int
    children: dict[str, _Node] = field(default_factory=dict["str", "_Node"])
    # The longest proper suffix of this prefix that is itself a prefix of some stop; None at the root.
    fallback: _Node | None = None
    # The longest stop that this prefix ends with.
    stop: str | None = None


class StopMatcher:
    """Looks for the first stop string in a text.

    On the whole text, the stop whose occurrence *ends* first wins; among those that end at the same place, the longest.
    The text before the start of the winning occurrence can be released, and is released as soon as no continuation can
    make it part of a stop: held back is the longest suffix that is a proper prefix of some stop, and no more.

    Text that is fed with ``armed=False`` belongs to the first ``min_tokens`` tokens: an occurrence that ends in it does
    not count. One that begins there and ends in armed text does.

    The cost is linear in the text; of text that has no character that begins a stop, about that of one C loop over it.

    Attributes:
        position: characters fed so far; after a match, before the text that completed it.

    Raises:
        InvalidRequest: (field ``stop``) there are no stops, or one is the empty string, which would end every text.
    """

    __slots__ = ("_firsts", "_held", "_node", "_root", "position")

    def __init__(self, stops: Sequence[str]) -> None:
        if not stops or not all(stops):
            raise InvalidRequest("stop strings must not be empty: an empty one would end every text", field="stop")
        self._root = _build(stops)
        self._firsts = frozenset(self._root.children)
        self._node = self._root
        self._held = ""
        self.position = 0

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, StopMatch | None]:
        """Go on with `text`.

        Returns:
            The text that can be released now, beyond what was released before, and the match, if there is one: then
            the released text ends where the match starts. After a match the matcher must not be fed again.
        """
        root = self._root
        node = self._node
        if node is root and self._firsts.isdisjoint(text):
            self.position += len(text)
            return text, None
        for index, character in enumerate(text):
            child = node.children.get(character)
            while child is None and node.fallback is not None:
                node = node.fallback
                child = node.children.get(character)
            if child is None:
                continue
            node = child
            if armed and node.stop is not None:
                end = self.position + index + 1
                start = end - len(node.stop)
                released_before = self.position - len(self._held)
                self._held, all_text = "", self._held + text
                return all_text[: start - released_before], StopMatch(node.stop, start, end)
        # A whole stop that did not count, and that begins no other: what may still become one is shorter.
        while not node.children and node.fallback is not None:
            node = node.fallback
        self._node = node
        self.position += len(text)
        if self._held:
            text = self._held + text
        border = len(text) - node.depth
        self._held = text[border:]
        return text[:border], None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held, self._node = self._held, "", self._root
        return held


def _build(stops: Sequence[str]) -> _Node:
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.children.setdefault(character, _Node(node.depth + 1))
        node.stop = stop
    queue = deque([root])
    while queue:  # breadth first: a fallback is shorter, so it is complete before it is needed
        node = queue.popleft()
        for character, child in node.children.items():
            fallback = node.fallback
            while fallback is not None and character not in fallback.children:
                fallback = fallback.fallback
            child.fallback = root if fallback is None else fallback.children[character]
            child.stop = child.stop or child.fallback.stop
            queue.append(child)
    return root
