"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from anyengine.errors import EngineClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

__all__ = ["Portal"]

T = TypeVar("T")


class Portal:
    """Runs coroutines on its loop for any thread."""

    def __init__(self) -> None:
        self._running = start_blocking_portal("asyncio", name="anyengine")
        self._portal = self._running.__enter__()
        self.closed = False
        self._closing = threading.Lock()
        self._rooms: set[anyio.Event] = set()

    def start(self, work: Callable[[], Awaitable[T] | T]) -> Future[T]:
        """Begin, and return at once.

        Raises:
            EngineClosed: the loop is closed.
        """
        try:
            return self._portal.start_task_soon(work)  # pyright: ignore[reportReturnType, reportArgumentType] its overloads tell the two apart
        except RuntimeError as error:
            if not self.closed:  # called from the loop itself
                raise
            raise EngineClosed("the engine was closed; load a new one") from error

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run to the end. What interrupts the calling thread (Ctrl+C) cancels the work."""
        scope: anyio.CancelScope | None = None
        interrupted = False

        async def run() -> T:
            nonlocal scope
            with anyio.CancelScope() as scope:
                if interrupted:
                    scope.cancel()
                return await work()
            raise EngineClosed("the call was interrupted")  # nobody hears it

        try:
            return self.start(run).result()
        except Exception:
            raise
        except BaseException:  # perhaps before we know of the task: it may begin yet, or run already
            interrupted = True
            if scope is not None:
                self.start(scope.cancel)
            raise

    async def wait_for_room(self, room: anyio.Event) -> None:
        """Wait for a reader, but not once the portal closes: then there may be none any more."""
        self._rooms.add(room)
        try:
            await room.wait()
        finally:
            self._rooms.discard(room)

    async def _make_room(self) -> None:
        for room in self._rooms:
            room.set()

    def close(self, last: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Run ``last``, let everything come to its end, and the thread too. Idempotent; who comes second waits."""
        with self._closing:
            if self.closed:
                return
            self.closed = True
            try:
                if last is not None:
                    self.call(last)
            finally:
                self.call(self._make_room)
                self._running.__exit__(None, None, None)
