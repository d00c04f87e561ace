"""Server-sent events, parsed as they come (WHATWG HTML, section 9.2.6, over bytes).

An event is handed out as soon as its empty line is there. What is kept of an incomplete one is bounded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from anyengine_server.errors import MalformedAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Event", "EventParser"]

#: Bytes of one event; the largest that engines send (log-probabilities of a long prompt) are well below.
MAX_EVENT_BYTES = 16 * 2**20

_LINE_END = re.compile(rb"\r\n|\n|\r")


class Event(Struct, frozen=True, gc=False):
    """One event.

    Attributes:
        data: its data lines, joined by line ends.
        name: what ``event:`` says; ``message`` without one.
    """

    data: bytes
    name: str = "message"


class EventParser:
    """Takes bytes in pieces of any size, gives the events that they complete.

    Args:
        max_bytes: that one event may have.
    """

    __slots__ = ("_data", "_first", "_max_bytes", "_name", "_rest", "_size")

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()  # of a line without its end
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0
        self._first = True

    @property
    def pending(self) -> bool:
        """Whether the stream stands within an event: if it ends here, it was cut off."""
        return bool(self._rest.strip() or self._data or self._name)

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that are complete with this piece.

        Raises:
            MalformedAnswer: a line that is no field of an event, or an event beyond the bound.
        """
        self._rest += piece
        if self._first and len(self._rest) >= 3:  # noqa: PLR2004 of a byte order mark
            self._first = False
            if self._rest.startswith(b"\xef\xbb\xbf"):
                del self._rest[:3]
        if b"\n" not in piece and b"\r" not in piece:
            self._check(len(self._rest))
            return
        start = 0
        for end in _LINE_END.finditer(self._rest):
            if end.group() == b"\r" and end.end() == len(self._rest):
                break  # a line feed may follow in the next piece
            event = self._line(bytes(self._rest[start : end.start()]))
            start = end.end()
            if event is not None:
                yield event
        del self._rest[:start]
        self._check(len(self._rest))

    def _check(self, more: int) -> None:
        if self._size + more > self._max_bytes:
            raise MalformedAnswer(f"the server sent an event of more than {self._max_bytes} bytes")

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, colon, value = line.partition(b":")
        if not field:
            return None  # a comment, which keeps the connection alive
        self._size += len(line)
        self._check(0)
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        elif field not in {b"id", b"retry"}:
            # A browser ignores it. Of an engine it means that something else than events is being sent.
            shown = (field + colon + value)[:80].decode(errors="replace")
            raise MalformedAnswer(f"the server sent a line that is no part of an event: {shown!r}")
        return None

    def _dispatch(self) -> Event | None:
        event = Event(b"\n".join(self._data), self._name or "message") if self._data else None
        self._data, self._name, self._size = [], "", 0
        return event
