"""The engine's thread: commands come in from the event loop, deltas go out to it, between forward passes."""

from __future__ import annotations

import asyncio
import atexit
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

from anyengine.errors import AnyEngineError

from anyengine_transformers import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.stats import EngineStats

    from anyengine_transformers.core import Core, Delivery
    from anyengine_transformers.sequence import Sequence

__all__ = ["EngineThread"]


#: Threads that may not have ended.
_running: WeakSet[EngineThread] = WeakSet()


@atexit.register
def _end_all() -> None:
    """End the threads of engines that were never closed: torch aborts the program in a thread that Python cuts off."""
    for thread in list(_running):
        thread.end()


class EngineThread:
    """Steps a :class:`~anyengine_transformers.core.Core` until it is stopped or the device is lost.

    The public methods are for the event loop that was given. The core belongs to the thread alone, so weights and
    caches go when it ends.

    Attributes:
        stats: as of the last step.
    """

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Condition()
        self._commands: list[Callable[[Core], None]] = []  # guarded by the lock, as are the next two
        self._stopping = False
        self._ended = False
        self._cause: BaseException | None = None  # of a death; set before the end
        self.stats: EngineStats = core.stats()
        self._thread = threading.Thread(target=self._run, args=(core,), name="anyengine-transformers", daemon=True)
        self._thread.start()
        _running.add(self)

    def submit(self, sequence: Sequence) -> None:
        """Accept a request; its collector hears of all that follows."""
        if self._tell(lambda core: core.add(sequence)):
            return
        if self._cause is None:
            sequence.collector.put(sequence.ended("abort"))
        else:
            sequence.collector.fail(errors.death(self._cause))

    async def abort(self, request_id: str) -> None:
        """End a request: after the forward pass that is under way, nothing of it is computed or kept."""
        done = self._loop.create_future()

        def abort(core: Core) -> None:
            core.abort(request_id)
            self._hand_over(core, done)

        if self._tell(abort):
            await done

    def check(self) -> None:
        """Return if the engine works.

        Raises:
            EngineDied: the device is lost.
        """
        if self._cause is not None:
            raise errors.death(self._cause)

    def stop(self) -> None:
        """End every request and then the thread, soon. From any thread."""
        with self._lock:
            self._stopping = True
            self._lock.notify()

    async def close(self) -> None:
        """End every request and the thread."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Wait until every request and the thread have ended: a forward pass at most. From any other thread."""
        self.stop()
        self._thread.join()

    def _tell(self, command: Callable[[Core], None]) -> bool:
        """Have a command run before the next forward pass; False if none comes any more."""
        with self._lock:
            if self._ended:
                return False
            self._commands.append(command)
            self._lock.notify()
            return True

    # -- in the thread ----------------------------------------------------------------------------

    def _run(self, core: Core) -> None:
        try:
            while self._obey(core):
                core.step()
                self._hand_over(core)
        except BaseException as error:  # noqa: BLE001 a thread has no caller; the readers are told
            self._cause = error
        with self._lock:
            self._ended = True
            last, self._commands = self._commands, []
        for command in last:
            command(core)
        cause = self._cause
        core.end_all(None if cause is None else lambda: errors.death(cause))
        self._hand_over(core)

    def _obey(self, core: Core) -> bool:
        """Run what commands there are, and wait for one while there is nothing to compute; False at the end."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._commands or self._stopping or core.busy)
                if self._stopping:
                    return False
                commands, self._commands = self._commands, []
            for command in commands:
                command(core)
            if core.busy:
                return True

    def _hand_over(self, core: Core, done: asyncio.Future[None] | None = None) -> None:
        """Send what has come of the last step; then resolve ``done``."""
        self.stats = core.stats()
        deliveries = core.take()
        if deliveries or done is not None:
            try:
                self._loop.call_soon_threadsafe(_deliver, deliveries, done)
            except RuntimeError:  # the loop is closed: nobody is left to hear
                self.stop()


def _deliver(deliveries: list[Delivery], done: asyncio.Future[None] | None) -> None:
    for collector, what in deliveries:
        if isinstance(what, AnyEngineError):
            collector.fail(what)
        else:
            collector.put(what)
    if done is not None and not done.done():
        done.set_result(None)
