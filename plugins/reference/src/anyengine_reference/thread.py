"""The thread that steps the engine, and its dealings with the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from anyengine.errors import AnyEngineError, EngineDied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyengine.stats import EngineStats

    from anyengine_reference.core import Core, Delivery
    from anyengine_reference.sequence import Sequence

__all__ = ["EngineThread"]


class EngineThread:
    """Runs :class:`~anyengine_reference.core.Core` off the event loop. Commands go in, deltas come out, once a step.

    All methods but the thread's own run on the event loop that was given. Only the running thread holds the core, so
    that weights and cache go when it ends.
    """

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wake = threading.Condition()
        # Guarded by the condition:
        self._commands: list[Callable[[Core], Iterable[Delivery]]] = []
        self._closing = False
        self._ended = False
        # The thread's own, read by the loop:
        self.stats: EngineStats = core.stats()
        self._cause: BaseException | None = None
        self._later: list[asyncio.Future[None]] = []
        self._thread = threading.Thread(target=self._run, args=(core,), name="anyengine-reference", daemon=True)
        self._thread.start()

    # -- on the event loop ------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Accept a sequence; its collector hears of everything that follows."""

        def add(core: Core) -> Iterable[Delivery]:
            core.add(sequence)
            return ()

        if self._send(add):
            return
        if self._cause is not None:
            sequence.collector.fail(self._death())
        else:
            sequence.collector.put(sequence.aborted())

    async def abort(self, request_id: str) -> None:
        """End a sequence; its blocks are free when this returns."""
        done = self._loop.create_future()

        def abort(core: Core) -> Iterable[Delivery]:
            # Resolved after this round's deliveries and statistics, which are sent first.
            self._later.append(done)
            return core.abort(request_id)

        if self._send(abort):
            await done

    def check(self) -> None:
        """Return if the engine works.

        Raises:
            EngineDied: a step has failed.
        """
        if self._cause is not None:
            raise self._death()

    def stop(self) -> None:
        """End every sequence and then the thread, soon."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    async def close(self) -> None:
        """End every sequence and the thread."""
        self.stop()
        await asyncio.to_thread(self._thread.join)

    def _send(self, command: Callable[[Core], Iterable[Delivery]]) -> bool:
        """Have a command run before the next step; False if the thread takes none any more."""
        with self._wake:
            if not self._ended:
                self._commands.append(command)
                self._wake.notify()
            return not self._ended

    def _death(self) -> EngineDied:
        """What there is to say after a failed step; a new one each time, since each reader adds its own traceback."""
        error = EngineDied(
            f"the reference engine failed in a step: {type(self._cause).__name__}: {self._cause}", engine="reference"
        )
        error.__cause__ = self._cause
        return error

    def _deliver(self, deliveries: list[Delivery], done: list[asyncio.Future[None]]) -> None:
        for collector, what in deliveries:
            if isinstance(what, AnyEngineError):
                collector.fail(what)
            else:
                collector.put(what)
        for future in done:
            if not future.done():
                future.set_result(None)

    # -- in the thread ----------------------------------------------------------------------------

    def _run(self, core: Core) -> None:
        going = True
        while going:
            with self._wake:
                self._wake.wait_for(lambda: self._commands or core.busy or self._closing)
                going = not self._closing
            deliveries: list[Delivery] = []
            try:
                self._obey(core, deliveries)
                if going and core.busy:
                    deliveries += core.step()
            except BaseException as error:  # noqa: BLE001 whatever it was, the engine's state is lost; a thread has no caller
                self._cause, going = error, False
            going = self._hand_over(core, deliveries) and going
        with self._wake:
            self._ended = True
        deliveries = []
        self._obey(core, deliveries)
        deliveries += core.abort_all() if self._cause is None else core.fail_all(self._death)
        self._hand_over(core, deliveries)

    def _obey(self, core: Core, deliveries: list[Delivery]) -> None:
        with self._wake:
            commands, self._commands = self._commands, []
        for command in commands:
            deliveries += command(core)

    def _hand_over(self, core: Core, deliveries: list[Delivery]) -> bool:
        """Send to the event loop; False if that is closed, and nobody is left to hear."""
        self.stats = core.stats()
        done, self._later = self._later, []
        if not deliveries and not done:
            return True
        try:
            self._loop.call_soon_threadsafe(self._deliver, deliveries, done)
        except RuntimeError:
            return False
        return True
