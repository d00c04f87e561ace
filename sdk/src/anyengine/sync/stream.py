"""A running generation, read from a thread without an event loop."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from anyengine.errors import EngineClosed, Misuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from anyengine.outputs import Chunk
    from anyengine.stream import Stream as AsyncStream
    from anyengine.sync.portal import Portal

__all__ = ["Stream"]

#: Chunks that may lie ready; beyond it the reader on the loop waits, and the engine's own collector merges.
_MAX_READY = 1024


class Stream:
    """Chunks as they come; see :class:`anyengine.Stream` for the guarantees.

    One task on the engine's loop reads for us. The iterating thread takes everything that lies ready at once, so that
    a fast engine does not cost a change of threads for each chunk.
    """

    def __init__(self, portal: Portal, stream: AsyncStream) -> None:
        self._portal = portal
        self._stream = stream
        self._ready: deque[Chunk] = deque()
        self._taken: deque[Chunk] = deque()
        self._changed = threading.Condition()
        self._entered = False
        self._left = False
        self._over = False
        self._error: BaseException | None = None
        self._error_on_exit: BaseException | None = None
        self._room: anyio.Event | None = None
        self._task: Future[None] | None = None
        self._reading: anyio.CancelScope | None = None

    async def _read(self) -> None:
        try:
            async with self._stream as stream:
                # Leaving cancels the reading only, so that the stream's own exit is an ordinary one.
                with anyio.CancelScope() as self._reading:
                    with self._changed:
                        self._entered = True
                        self._changed.notify_all()
                    await self._read_all(stream)
        except Exception as error:  # noqa: BLE001 raised again in the iterating thread
            if not self._entered:
                self._error = error
            self._error_on_exit = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    async def _read_all(self, stream: AsyncStream) -> None:
        try:
            async for chunk in stream:
                room = self._offer(chunk)
                if room is not None:
                    await self._portal.wait_for_room(room)
        except Exception as error:  # noqa: BLE001 raised again in the iterating thread
            self._error = error
        except BaseException:
            # Not by its reader: then the engine is being closed, and the stream has not come to its end.
            self._error = EngineClosed("the engine was closed while the stream was open")
            raise

    def _offer(self, chunk: Chunk) -> anyio.Event | None:
        with self._changed:
            self._ready.append(chunk)
            full = len(self._ready) >= _MAX_READY and not self._portal.closed
            room = self._room = anyio.Event() if full else None
            self._changed.notify_all()
        return room

    def __enter__(self) -> Self:
        if self._task is not None:
            raise Misuse("a stream can be entered once; make another with engine.stream(...)")
        self._task = self._portal.start(self._read)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._entered or self._over)
        except BaseException:  # the thread was interrupted, and __exit__ will not be called
            self._leave()
            raise
        if not self._entered:
            raise self._error or EngineClosed("the engine was closed; load a new one")
        return self

    def __iter__(self) -> Iterator[Chunk]:
        if self._task is None or self._left:
            raise Misuse("a stream is read inside its context: `with engine.stream(...) as stream`")
        return self

    def __next__(self) -> Chunk:
        try:
            return self._taken.popleft()
        except IndexError:
            return self._next_ready()

    def _next_ready(self) -> Chunk:
        if self._task is None:
            raise Misuse("a stream is read inside its context: `with engine.stream(...) as stream`")
        self._portal.require_own_process()
        with self._changed:
            # Another thread that reads the same stream may have taken, or be taking, what is ready.
            self._changed.wait_for(lambda: self._ready or self._taken or self._over)
            self._taken.extend(self._ready)
            self._ready.clear()
            room, self._room = self._room, None
            chunk = self._taken.popleft() if self._taken else None
        if room is not None:
            with suppress(EngineClosed):
                self._portal.start(room.set)
        if chunk is not None:
            return chunk
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()
        if self._error_on_exit is None:
            return
        if error is None:
            raise self._error_on_exit
        error.add_note(f"and then: {self._error_on_exit}")

    def _leave(self) -> None:
        self._left = True
        if self._task is not None and not self._portal.foreign:
            if self._reading is None:
                self._task.cancel()
            else:
                with suppress(EngineClosed):  # then it is over already
                    self._portal.start(self._reading.cancel)
            with self._changed:
                self._changed.wait_for(lambda: self._over)
        self._ready.clear()
        self._taken.clear()
        self._error = None
