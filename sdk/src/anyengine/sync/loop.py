"""An event loop in a thread of its own, and what comes back from it.

A thread that waits here may be interrupted at any instruction, for a signal's handler may raise (Ctrl+C). The standard
library's Future and Condition take their lock in Python: an interrupt in the middle can leave it taken for ever, which
blocks the loop as soon as it wants it, or has it released without being taken, which is a RuntimeError. A SimpleQueue,
which is of C, has given what it had or has not; so all that is waited for comes through one.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import anyio

from anyengine.errors import EngineClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Loop", "Outcome"]

T = TypeVar("T")
#: Is told what work gave, or what it raised.
Then: TypeAlias = "Callable[[Any, BaseException | None], object]"


def _closed() -> EngineClosed:
    return EngineClosed("the engine was closed; load a new one")


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
        self._serving = False
        self._unfinished: set[Then] = set()
        ready = Outcome[None]()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=name, daemon=True)
        self._thread.start()
        ready.result()

    def _run(self, ready: Outcome[None]) -> None:
        try:
            anyio.run(self._serve, ready, backend="asyncio")
        except BaseException as error:
            if self._serving:
                raise
            ready.tell(None, error)
        finally:
            # What came too late; what comes now finds the loop closed.
            with suppress(KeyError):  # there is no more
                while True:
                    self._unfinished.pop()(None, _closed())

    async def _serve(self, ready: Outcome[None]) -> None:
        self._asyncio = asyncio.get_running_loop()
        self._stopped = anyio.Event()
        async with anyio.create_task_group() as self._tasks:
            self._serving = True
            ready.tell(None)
            await self._stopped.wait()

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.current_thread() is self._thread

    def start(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        """Begin, and return at once.

        Args:
            work: runs on the loop.
            then: is told there, or where the loop has ended, once, what it gave or raised.

        Raises:
            EngineClosed: the loop has ended.
        """
        self._unfinished.add(then)
        try:
            self._asyncio.call_soon_threadsafe(self._begin, work, then)
        except RuntimeError as error:
            self._unfinished.discard(then)
            raise _closed() from error

    def _begin(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        try:
            self._tasks.start_soon(self._carry_out, work, then)
        except RuntimeError:  # all that was begun has ended, and the loop is about to
            self._finish(then, None, _closed())

    async def _carry_out(self, work: Callable[[], Awaitable[Any] | Any], then: Then) -> None:
        try:
            value = work()
            if inspect.isawaitable(value):
                value = await value
        except Exception as error:  # noqa: BLE001 it belongs to who waits for it
            self._finish(then, None, error)
        except BaseException:
            self._finish(then, None, _closed())
            raise
        else:
            self._finish(then, value, None)

    def _finish(self, then: Then, value: Any, error: BaseException | None) -> None:
        self._unfinished.discard(then)
        then(value, error)

    def stop(self) -> None:
        """Let everything that has begun come to its end, and then the loop. Returns at once; idempotent."""
        with suppress(RuntimeError):  # it has ended
            self._asyncio.call_soon_threadsafe(self._stopped.set)

    def join(self) -> None:
        """Wait until the loop has ended."""
        self._thread.join()
