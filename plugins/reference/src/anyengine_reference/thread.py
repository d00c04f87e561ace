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

    All methods but the thread's own run on the event loop that was given.
    """

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._loop = loop
        self._commands: list[Callable[[], Iterable[Delivery]]] = []
        self._wake = threading.Condition()
        self._closing = False
        self.stats: EngineStats = core.stats()
        self.died: EngineDied | None = None
        self._thread = threading.Thread(target=self._run, name="anyengine-reference", daemon=True)
        self._thread.start()

    # -- on the event loop ------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Accept a sequence; its collector hears of everything that follows."""

        def add() -> Iterable[Delivery]:
            self._core.add(sequence)
            return ()

        if self._closing or self.died is not None:
            sequence.collector.fail(self.died or EngineDied("the reference engine was closed"))
        else:
            self._send(add)

    async def abort(self, request_id: str) -> None:
        """End a sequence; its blocks are free when this returns."""
        if self._closing or self.died is not None:
            return
        done = self._loop.create_future()

        def abort() -> Iterable[Delivery]:
            yield from self._core.abort(request_id)
            # Resolved after this round's deliveries and statistics, which are sent first.
            self._later.append(done)

        self._send(abort)
        await done

    async def close(self) -> None:
        """End every sequence and the thread."""
        if not self._closing:
            with self._wake:
                self._closing = True
                self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _send(self, command: Callable[[], Iterable[Delivery]]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

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

    def _run(self) -> None:
        self._later: list[asyncio.Future[None]] = []
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._commands or self._core.busy or self._closing)
                commands, self._commands = self._commands, []
                closing = self._closing
            deliveries = [delivery for command in commands for delivery in command()]
            if closing:
                deliveries += self._core.abort_all()
            elif self._core.busy:
                try:
                    deliveries += self._core.step()
                except Exception as error:  # noqa: BLE001 whatever it was, the engine's state is lost
                    deliveries += self._die(error)
            self.stats = self._core.stats()
            done, self._later = self._later, []
            if not self._hand_over(deliveries, done) or closing or self.died is not None:
                break
        self._refuse_the_rest()

    def _die(self, error: Exception) -> Iterable[Delivery]:
        self.died = EngineDied(
            f"the reference engine failed in a step: {type(error).__name__}: {error}", engine="reference"
        )
        self.died.__cause__ = error
        return self._core.fail_all(self.died)

    def _hand_over(self, deliveries: list[Delivery], done: list[asyncio.Future[None]]) -> bool:
        """Send to the event loop; False if that is closed, and nobody is left to hear."""
        if not deliveries and not done:
            return True
        try:
            self._loop.call_soon_threadsafe(self._deliver, deliveries, done)
        except RuntimeError:
            return False
        return True

    def _refuse_the_rest(self) -> None:
        """Commands that came while the thread was ending."""
        with self._wake:
            self._closing = True
            commands, self._commands = self._commands, []
        deliveries = [delivery for command in commands for delivery in command()]
        deliveries += self._core.fail_all(self.died) if self.died is not None else self._core.abort_all()
        self.stats = self._core.stats()
        done, self._later = self._later, []
        self._hand_over(deliveries, done)
