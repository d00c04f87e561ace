"""An event loop in a thread of its own, and what comes back from it.

A thread that waits here may be interrupted at any instruction, for a signal's handler may raise (Ctrl+C). The standard
library's Future and Condition take their lock in Python: an interrupt in the middle can leave it taken for ever, which
blocks the loop as soon as it wants it, or has it released without being taken, which is a RuntimeError. A SimpleQueue,
which is of C, has given what it had or has not; so all that is waited for comes through one.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from anyengine.errors import EngineClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Loop", "Outcome", "cancelled"]

T = TypeVar("T")
#: Is told what work gave, or what it raised.
Then: TypeAlias = "Callable[[Any, BaseException | None], object]"


def _closed() -> EngineClosed:
    return EngineClosed("the engine was closed; load a new one")


def cancelled() -> CancelledError:
    """What a caller is told whose work was cancelled on the loop, by the work itself or an extension."""
    return CancelledError("cancelled on the engine's own loop")


class Outcome(Generic[T]):
    """What something came to, for one thread that waits for it."""

    def __init__(self) -> None:
        self._said: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def tell(self, value: T | None, error: BaseException | None = None) -> None:
        """Let who waits go on."""
        self._said.put((value, error))

    def result(self) -> T:
        """Wait for it; once."""
        value, error = self._said.get()
        if error is None:
            return cast("T", value)
        try:
            raise error
        finally:
            del error  # its traceback has this frame


class Loop:
    """Runs work of other threads, until it is stopped.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._unfinished: set[Then] = set()
        ready = Outcome[None]()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=name, daemon=True)
        try:
            self._thread.start()
            ready.result()
        except BaseException:  # interrupted: nobody else will stop it
            self.stop()
            raise

    def _run(self, ready: Outcome[None]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:  # for who waits in `__init__`; once that has gone on, for Python's own hook
            if self._asyncio is not None:
                raise
            ready.tell(None, error)
        finally:
            # What came too late; what comes now finds the loop closed.
            with suppress(KeyError):  # there is no more
                while True:
                    self._unfinished.pop()(None, _closed())

    async def _serve(self, ready: Outcome[None]) -> None:
        self._stopped = asyncio.Event()
        self._asyncio = asyncio.get_running_loop()
        ready.tell(None)
        if not self._stopping:  # before it was there
            await self._stopped.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._ended = True

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.current_thread() is self._thread

    def start(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        """Begin, in the caller's context, and return at once.

        Args:
            work: runs on the loop.
            then: is told there, or where the loop has ended, once, what it gave or raised.

        Raises:
            EngineClosed: the loop has ended.
        """
        if self._asyncio is None:
            raise _closed()
        context = contextvars.copy_context()
        if (sniffio := sys.modules.get("sniffio")) is not None:  # by which the caller's may be trio
            context.run(sniffio.current_async_library_cvar.set, "asyncio")
        self._unfinished.add(then)
        try:
            self._asyncio.call_soon_threadsafe(self._begin, work, then, context=context)
        except BaseException as error:  # it has ended, or we are interrupted: nobody waits
            self._unfinished.discard(then)
            if isinstance(error, RuntimeError):
                raise _closed() from error
            raise

    def _begin(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        if self._ended:
            self._finish(then, None, _closed())
            return
        task = asyncio.ensure_future(self._carry_out(work, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        try:
            value = work()
            if inspect.isawaitable(value):
                value = await value
        except Exception as error:  # noqa: BLE001 it belongs to who waits for it
            self._finish(then, None, error)
        except BaseException as error:  # told to who waits, and asyncio's to end the task by, or the loop
            self._finish(then, None, cancelled() if isinstance(error, asyncio.CancelledError) else error)
            raise
        else:
            self._finish(then, value, None)

    def _finish(self, then: Then, value: Any, error: BaseException | None) -> None:
        self._unfinished.discard(then)
        then(value, error)

    def stop(self) -> None:
        """Let everything that has begun come to its end, and then the loop. Returns at once; idempotent."""
        self._stopping = True
        if self._asyncio is not None:
            with suppress(RuntimeError):  # it has ended
                self._asyncio.call_soon_threadsafe(self._stopped.set)

    def join(self) -> None:
        """Wait until the loop has ended."""
        self._thread.join()
