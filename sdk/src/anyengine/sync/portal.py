"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from anyengine.errors import EngineClosed, Misuse
from anyengine.sync.loop import Loop, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyengine.sync.loop import Then

__all__ = ["Portal"]

T = TypeVar("T")

#: Those that are to be closed when the program ends.
_open: weakref.WeakSet[Portal] = weakref.WeakSet()


def _nobody(value: object, error: BaseException | None) -> None:
    """Who is told what nobody waits for."""


@atexit.register
def _close_all() -> None:
    """Close what the program did not.

    The interpreter has closed its pools of threads by now. An engine in this process that cannot close without them
    ends with the process.
    """
    for portal in list(_open):
        with suppress(Exception):
            portal.close()


class Portal:
    """Runs coroutines on its loop for any thread, until it is closed, forgotten, or the program ends.

    Args:
        last: to run on the loop before it ends.
    """

    def __init__(self, last: Callable[[], Awaitable[Any]] | None = None) -> None:
        # Not anyio's own portal: its futures can be left locked by an interrupt, it waits for its loop when it is
        # collected, and at the end of the program, or in a fork, there is no loop any more that could answer.
        self._loop = Loop("anyengine")
        self._last = last
        self._process = os.getpid()
        self.closed = False
        self._ended = False
        # A signal's handler may close what its own thread is closing.
        self._closing = threading.RLock()
        self._busy = False
        self._rooms: set[anyio.Event] = set()
        try:
            self._forgotten = weakref.finalize(self, _end, self._loop, last, self._process)
            self._forgotten.atexit = False
            _open.add(self)
        except BaseException:  # interrupted: nobody will close it
            self._loop.stop()
            raise

    @property
    def foreign(self) -> bool:
        """Whether this is a fork of the process that has the loop."""
        return self._process != os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return self._loop.is_current

    def require_answer(self) -> None:
        """Refuse to wait for what cannot answer.

        Raises:
            Misuse: this is a fork of the process that has the loop, or the loop's own thread.
        """
        if self.foreign:
            raise Misuse(
                f"the engine was loaded in process {self._process}, of which this is a fork, without its threads; load "
                "an engine here, or start processes with multiprocessing's method 'spawn'"
            )
        self._require_other_thread()

    def start(self, work: Callable[[], Awaitable[Any] | Any], then: Then = _nobody) -> None:
        """Begin, and return at once; ``then`` is told on the loop what came of it.

        Raises:
            EngineClosed: the loop has ended.
            Misuse: it is in another process, or the caller is on it.
        """
        self.require_answer()
        self._loop.start(work, then)

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run to the end. What interrupts the calling thread (Ctrl+C) cancels the work."""
        scope: anyio.CancelScope | None = None
        interrupted = False
        outcome = Outcome[T]()

        async def run() -> T:
            nonlocal scope
            with anyio.CancelScope() as scope:
                if interrupted:
                    scope.cancel()
                return await work()
            raise EngineClosed("the call was interrupted")  # nobody hears it

        try:
            self.start(run, outcome.tell)
            return outcome.result()
        except Exception:
            raise
        except BaseException:  # perhaps before we know of the task: it may begin yet, or run already
            interrupted = True
            if scope is not None:
                with suppress(EngineClosed):  # then it has ended
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

    def _require_other_thread(self) -> None:
        if self._loop.is_current:
            raise Misuse(
                "a call of anyengine.sync from the engine's own thread, as from an extension, would wait for itself"
            )

    def close(self) -> None:
        """Run ``last``, let everything come to its end, and the thread too.

        Idempotent; who comes second waits. One that was interrupted is taken up by the next.
        """
        if self.foreign:  # it is its owner's
            return
        self._require_other_thread()
        with self._closing:
            if self._ended or self._busy:
                return
            try:
                self._busy = self.closed = True
                self._close()
            finally:
                self._busy = False

    def _close(self) -> None:
        try:
            if self._last is not None:
                with suppress(EngineClosed):  # the loop has ended already
                    self.call(self._last)
        except Exception:  # of the engine's own close: the loop ends all the same
            self._finish()
            raise
        self._finish()  # not where the last was interrupted: it has to run yet

    def _finish(self) -> None:
        with suppress(EngineClosed):
            self.start(self._make_room)
        self._loop.stop()
        self._loop.join()
        self._forgotten.detach()
        _open.discard(self)
        self._ended = True


def _end(loop: Loop, last: Callable[[], Awaitable[Any]] | None, process: int) -> None:
    """End the loop of a portal that nobody has any more."""

    def end() -> None:
        try:
            if last is not None:
                outcome = Outcome[Any]()
                loop.start(last, outcome.tell)
                outcome.result()
        finally:
            loop.stop()

    # Apart: the garbage collector may call this in any thread, that of the loop among them.
    if process == os.getpid():
        threading.Thread(target=end, name="anyengine-end", daemon=True).start()
