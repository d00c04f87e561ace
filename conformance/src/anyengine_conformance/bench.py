"""The thread whose event loop the engine under test lives on.

An engine may block its event loop, or never come back from a cancellation. The runner must outlive both, so it stays on
its own thread, waits with a limit, and gives a loop that does not answer up for a new one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from anyengine_conformance.interrupts import held

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Bench", "Hung", "Overran"]

P = ParamSpec("P")
T = TypeVar("T")
#: Kept: what still runs on them must not be collected under its feet.
_ABANDONED: list[asyncio.AbstractEventLoop] = []
#: What threads take their calls from that have nothing to do.
_IDLE: list[SimpleQueue[Callable[[], None]]] = []
#: Seconds that a thread waits for its next call.
_PATIENCE = 5.0
#: Seconds for what was cancelled to clean up.
GRACE = 10.0
#: The same where somebody waits for the end of everything.
_HURRY = 5.0


class Overran(Exception):
    """A coroutine ran past its limit, and ended when it was cancelled."""


class Hung(Exception):
    """A coroutine ran past its limit and did not end; its loop was given up, with all that lives on it."""


class _Daemons(concurrent.futures.ThreadPoolExecutor):
    """Threads that Python does not wait for: an engine may hang in one for ever. A call has one to itself.

    One that has nothing to do takes the next call, of whatever bench, and ends if none comes for some seconds: for each
    new thread hypothesis collects garbage, and looks through all that is left, for a tenth of a second.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            calls = _IDLE.pop()
        except IndexError:
            calls = SimpleQueue[Callable[[], None]]()
            threading.Thread(target=_work, args=(calls,), name="conformance-call", daemon=True).start()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 it belongs to who waits for it
                future.set_exception(error)

        calls.put(call)
        return future


def _work(calls: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        try:
            call = calls.get(timeout=_PATIENCE)
        except Empty:
            with contextlib.suppress(ValueError):  # taken just now: its call is on the way
                _IDLE.remove(calls)
                return
            continue
        call()
        del call  # what it held may go
        _IDLE.append(calls)


class Bench:
    """Runs coroutines, one after the other, on an event loop in a thread of its own.

    Attributes:
        abandoned: loops that were given up.
    """

    def __init__(self, *, grace: float = GRACE) -> None:
        self._grace = grace
        self.abandoned = 0
        self._start()

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Daemons())
        self._thread = threading.Thread(target=self._turn, args=(self._loop,), name="conformance", daemon=True)
        self._thread.start()

    @staticmethod
    def _turn(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        # What an engine's callbacks raise is the engine's; the loop goes on.
        loop.set_exception_handler(lambda _, __: None)
        try:
            loop.run_forever()
        finally:
            loop.close()

    def run(self, work: Coroutine[Any, Any, T], limit: float) -> T:
        """Wait for a coroutine.

        Args:
            work: runs on the bench's loop.
            limit: seconds.

        Raises:
            Overran: it did not end in time, but did when it was cancelled.
            Hung: it did not end then either.
            KeyboardInterrupt: came meanwhile. The coroutine was cancelled and has cleaned up, or its loop was given up.
        """
        ended = threading.Event()
        future: concurrent.futures.Future[T] | None = None
        # Not the future is waited for: interrupted at the wrong moment, it would leave its lock to nobody.
        done = SimpleQueue[concurrent.futures.Future[T]]()
        try:
            with held():  # else what has begun already would be cancelled by nobody
                future = asyncio.run_coroutine_threadsafe(_limited(work, limit, ended), self._loop)
                future.add_done_callback(done.put)
            finished = done.get(timeout=limit + self._grace)
        except Empty:
            self._give_up()
            raise Hung(f"gave no sign of life {self._grace:g} s after its limit of {limit:g} s") from None
        except KeyboardInterrupt:
            if future is None:  # it has not begun
                work.close()
                raise
            future.cancel()
            if not ended.wait(_HURRY):
                self._give_up()
            raise
        return finished.result()

    def _give_up(self) -> None:
        """Leave the loop to its daemon thread, which ends it if it ever can, and go on with a new one."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        _ABANDONED.append(self._loop)
        self.abandoned += 1
        self._start()

    def close(self) -> None:
        """End the loop."""
        loop = self._loop

        def end() -> None:
            # Made there: for a loop that stays blocked it would be a coroutine that nobody awaits.
            asyncio.ensure_future(_cancel_all()).add_done_callback(lambda _: loop.stop())

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end)
        self._thread.join(self._grace)  # what still runs may block it; then it ends whenever it can


async def _limited(work: Coroutine[Any, Any, T], limit: float, ended: threading.Event) -> T:
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda _: ended.set())
    try:
        done, _ = await asyncio.wait([task], timeout=limit)
    except asyncio.CancelledError:  # which does not reach what is only waited for
        task.cancel()
        raise
    if not done:
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            raise Overran(f"had not ended after {limit:g} s")
        # It swallowed the cancellation, or failed because of it.
        error = task.exception()
        raise Overran(f"had not ended after {limit:g} s") from error
    return task.result()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1.0)
