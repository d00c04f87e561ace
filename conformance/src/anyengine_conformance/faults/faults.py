"""Workers whose end is not told, or told wrongly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from anyengine import EngineDied, EngineStartupError, EngineStats, EngineUnresponsive

from anyengine_conformance.broken import BrokenEngine, fault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from anyengine import Chunk


@fault("faults.killed-worker-ends-every-request", "a stream of a dead worker just ends", base="worker")
class EndsQuietly(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            async for chunk in chunks:
                yield chunk
        except EngineDied:
            return


@fault("faults.killed-worker-tells-its-status", "the exit status is lost", base="worker")
class StatusLost(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            async for chunk in chunks:
                yield chunk
        except EngineDied as error:
            error.exit_status = None
            raise


@fault("faults.killed-worker-is-told-by-stats-and-health", "a dead engine is healthy", base="worker")
class HealthyDead(BrokenEngine):
    async def health(self) -> None:
        """All is well."""

    async def stats(self) -> EngineStats:
        """Whatever it says, or nothing."""
        try:
            return await self.inner.stats()
        except EngineDied:
            return EngineStats()


class OneIsLeft(BrokenEngine):
    """A process that outlives the engine counts as the worker's."""

    @property
    def pid(self) -> int:
        """The application's own."""
        return os.getpid()


@fault("faults.dead-worker-leaves-no-process", "a process outlives a dead worker", base="worker")
class LeftByTheDead(OneIsLeft):
    pass


@fault("faults.closed-engine-leaves-no-process", "a process outlives the engine", base="worker")
class LeftByTheClosed(OneIsLeft):
    pass


@fault("faults.next-load-works", "a killed worker leaves a lock behind", base="worker")
class LockLeft(BrokenEngine):
    locked: ClassVar[bool] = False

    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            async for chunk in chunks:
                yield chunk
        except EngineDied:
            LockLeft.locked = True
            raise

    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        if cls.locked and config.get("isolation") == "process":
            raise EngineStartupError("the lock is held by a process that is gone")
        return config


@fault("faults.stopped-worker-ends-every-request", "nobody watches whether the worker lives", base="worker")
class NotWatched(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            async for chunk in chunks:
                yield chunk
        except EngineUnresponsive:
            return
