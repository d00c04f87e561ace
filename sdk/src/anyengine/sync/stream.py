"""A running generation, read from a thread without an event loop."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import anyio

from anyengine.errors import EngineClosed, Misuse
from anyengine.sync.loop import Outcome, cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from anyengine.outputs import Chunk
    from anyengine.stream import Stream as AsyncStream
    from anyengine.sync.portal import Portal

__all__ = ["Stream"]

#: Chunks that may lie ready; beyond it the reader on the loop waits, and the engine's own collector merges.
_MAX_READY = 1024
#: Seconds after which one who waits looks whether the stream is over.
_LOOK = 1.0


class Stream:
    """Chunks as they come; see :class:`anyengine.Stream` for the guarantees.

    One task on the engine's loop reads for us. What it has read lies ready, so that a fast engine does not cost a
    change of threads for each chunk. What this thread waits for comes through queues, see :mod:`anyengine.sync.loop`.
    """

    def __init__(self, portal: Portal, stream: AsyncStream) -> None:
        self._portal = portal
        self._stream = stream
        #: None is the end.
        self._ready: SimpleQueue[Chunk | None] = SimpleQueue()
        self._entry = Outcome[None]()
        self._asked = False
        self._begun = False
        self._entered = False
        self._left = False
        self._over = False
        self._error: BaseException | None = None
        self._error_on_exit: BaseException | None = None
        self._room: anyio.Event | None = None
        self._room_made: anyio.Event | None = None
        self._entering: anyio.CancelScope | None = None
        self._reading: anyio.CancelScope | None = None

    # -- on the loop --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            with anyio.CancelScope() as self._entering:
                if self._left:
                    return
                async with self._stream as stream:
                    # From here leaving cancels the reading only, so that the stream's own exit is an ordinary one.
                    with anyio.CancelScope() as self._reading:
                        self._entered = True
                        self._entry.tell(None)
                        await self._read_all(stream)
        except Exception as error:  # noqa: BLE001 raised again by `__enter__` or `__exit__`
            self._error_on_exit = error

    async def _read_all(self, stream: AsyncStream) -> None:
        try:
            async for chunk in stream:
                room = self._offer(chunk)
                if room is not None:
                    await self._portal.wait_for_room(room)
        except Exception as error:  # noqa: BLE001 raised again in the iterating thread
            self._error = error
        except BaseException:
            # Not by its reader, who would not hear of it: the stream has not come to its end.
            closed = EngineClosed("the engine was closed while the stream was open")
            self._error = closed if self._portal.closed else cancelled()
            raise

    def _offer(self, chunk: Chunk) -> anyio.Event | None:
        self._ready.put(chunk)
        if self._ready.qsize() < _MAX_READY or self._portal.closed:
            return None
        self._room = anyio.Event()
        if self._ready.qsize() <= _MAX_READY // 2:  # who read so much meanwhile may not have seen that we wait
            self._room = None
        return self._room

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set()

    def _stop(self) -> None:
        scope = self._reading or self._entering
        if scope is not None:
            scope.cancel()

    def _end(self, _value: object, error: BaseException | None) -> None:
        self._over = True
        if not self._entered:
            self._entry.tell(None, self._error_on_exit or error or EngineClosed("the stream was left"))
        self._ready.put(None)

    # -- in the thread that reads -------------------------------------------------------------------------------------

    def _next(self) -> Chunk | None:
        """Wait for what comes next; the end comes as often as it is asked for, by whatever thread."""
        while not (self._over and self._ready.empty()):
            try:
                chunk = self._ready.get(timeout=_LOOK)
            except Empty:  # perhaps another thread took the end, and was interrupted before it gave it back
                continue
            if chunk is None:
                self._ready.put(None)
            return chunk
        return None

    def __enter__(self) -> Self:
        if self._asked:
            raise Misuse("a stream can be entered once; make another with engine.stream(...)")
        self._asked = True
        try:
            self._portal.start(self._read, self._end)
            self._begun = True
            self._entry.result()
        except BaseException:  # also an interrupt; __exit__ will not be called
            self._leave()
            raise
        return self

    def __iter__(self) -> Iterator[Chunk]:
        if not self._asked or self._left:
            raise Misuse("a stream is read inside its context: `with engine.stream(...) as stream`")
        return self

    def __next__(self) -> Chunk:
        if not self._begun:
            raise Misuse("a stream is read inside its context: `with engine.stream(...) as stream`")
        if self._ready.empty():
            self._portal.require_answer()
        chunk = self._next()
        if chunk is None:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration
        room = self._room
        if room is not None and room is not self._room_made and self._ready.qsize() <= _MAX_READY // 2:
            self._ask(self._make_room)
            self._room_made = room
        return chunk

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except BaseException:  # interrupted, perhaps before anything was done
            self._ask(self._stop)
            raise
        if self._error_on_exit is None:
            return
        if error is None:
            raise self._error_on_exit
        error.add_note(f"and then: {self._error_on_exit}")

    def _leave(self) -> None:
        """Stop, and wait until it is over; not on the loop itself, where the garbage collector may bring us."""
        self._left = True
        self._ask(self._stop)
        if self._begun and not self._portal.foreign and not self._portal.is_current:
            while self._next() is not None:
                pass
        self._error = None

    def _ask(self, what: Callable[[], None]) -> None:
        """Have the loop do it, if it is there."""
        if self._portal.foreign:
            return
        if self._portal.is_current:
            what()
            return
        with suppress(EngineClosed):
            self._portal.start(what)
