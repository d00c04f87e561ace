"""A running generation, read from a thread without an event loop."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import anyio

from anyengine.errors import Misuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

    from anyio.from_thread import BlockingPortal

    from anyengine.outputs import Chunk
    from anyengine.stream import Stream as AsyncStream

__all__ = ["Stream"]

#: Chunks that may lie ready; beyond it the reader on the loop waits, and the engine's own collector merges.
_MAX_READY = 1024


class Stream:
    """Chunks as they come; see :class:`anyengine.Stream` for the guarantees.

    One task on the engine's loop reads for us. The iterating thread takes everything that lies ready at once, so that
    a fast engine does not cost a change of threads for each chunk.
    """

    def __init__(self, portal: BlockingPortal, stream: AsyncStream) -> None:
        self._portal = portal
        self._stream = stream
        self._ready: deque[Chunk] = deque()
        self._taken: deque[Chunk] = deque()
        self._changed = threading.Condition()
        self._entered = False
        self._over = False
        self._error: BaseException | None = None
        self._room: anyio.Event | None = None
        self._task: Future[None] | None = None

    async def _read(self) -> None:
        try:
            async with self._stream as stream:
                with self._changed:
                    self._entered = True
                    self._changed.notify_all()
                async for chunk in stream:
                    with self._changed:
                        self._ready.append(chunk)
                        self._room = anyio.Event() if len(self._ready) >= _MAX_READY else None
                        self._changed.notify_all()
                    if self._room is not None:
                        await self._room.wait()
        except Exception as error:  # noqa: BLE001 raised again in the iterating thread
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def __enter__(self) -> Self:
        if self._task is not None:
            raise Misuse("a stream can be entered once; make another with engine.stream(...)")
        self._task = self._portal.start_task_soon(self._read)
        with self._changed:
            self._changed.wait_for(lambda: self._entered or self._over)
        if not self._entered and self._error is not None:
            raise self._error
        return self

    def __iter__(self) -> Iterator[Chunk]:
        if self._task is None:
            raise Misuse("a stream is a context manager: write `with engine.stream(...) as stream`")
        return self

    def __next__(self) -> Chunk:
        if not self._taken:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._over)
                self._taken, self._ready = self._ready, deque()
                room, self._room = self._room, None
            if room is not None:
                self._portal.start_task_soon(room.set)
        if self._taken:
            return self._taken.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with self._changed:
                self._changed.wait_for(lambda: self._over)
