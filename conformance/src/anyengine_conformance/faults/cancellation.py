"""Engines that do not let go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine import RequestTimeout
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, BrokenStream, fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyengine import EngineStats
    from anyengine.backend import TokenDelta, TokenRequest


_AT_ONCE = 0.2


class Leaks(BrokenBackend):
    """Counts requests that were aborted as running for ever."""

    leaked = 0

    async def abort(self, request_id: str) -> None:
        self.leaked += self.leaks(request_id)
        await self.inner.abort(request_id)

    def leaks(self, request_id: str) -> bool:
        """Whether this one is not let go."""
        return True

    async def stats(self) -> EngineStats:
        stats = await self.inner.stats()
        return replace(stats, running=(stats.running or 0) + self.leaked)


@fault("cancellation.leaving-a-stream", "a request that was left holds its place for ever")
class NeverLetsGo(Leaks):
    pass


@fault("cancellation.left-computes-no-more", "a request that was left is computed to its end")
class ComputesOn(BrokenBackend):
    async def abort(self, request_id: str) -> None:
        self.aborted = True
        await self.inner.abort(request_id)

    async def stats(self) -> EngineStats:
        stats = await self.inner.stats()
        extra = self.reads = getattr(self, "reads", 0) + 1
        return replace(stats, generated_tokens=(stats.generated_tokens or 0) + extra * getattr(self, "aborted", False))


@fault("cancellation.all-choices-of-a-stream", "only the first of n is ended")
class OnlyTheFirst(Leaks):
    def leaks(self, request_id: str) -> bool:
        return request_id.endswith(".3")


@fault("cancellation.unread-stream", "a stream that was never read holds a place")
class UnreadHolds(BrokenEngine):
    unread = 0

    def stream(self, prompt: Any = None, **options: Any) -> Any:
        engine = self

        class Counted(BrokenStream):
            async def __aexit__(self, *error: object) -> None:
                # A generator that was never begun has no frame to leave.
                read: Any = self._read
                engine.unread += read.ag_frame is not None and read.ag_frame.f_lasti < 1
                await super().__aexit__(*error)

        return Counted(self.inner.stream(prompt, **options), lambda chunks: self.chunks(chunks, options))

    async def stats(self) -> Any:
        stats = await self.inner.stats()
        return replace(stats, running=(stats.running or 0) + self.unread // 3)


class LeakingEngine(BrokenEngine):
    """Counts what a fault says as running for ever."""

    leaked = 0

    async def stats(self) -> Any:
        stats = await self.inner.stats()
        return replace(stats, running=(stats.running or 0) + self.leaked)


@fault("cancellation.cancelled-generate", "a cancelled call is computed to its end")
class CancelledRunsOn(LeakingEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except asyncio.CancelledError:
            self.leaked += not isinstance(prompt, list)
            raise


@fault("cancellation.timed-out-generate", "a call that ran out of time is computed to its end")
class TimedOutRunsOn(LeakingEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except RequestTimeout:
            self.leaked += 1
            raise


@fault("cancellation.cancelled-list", "of a cancelled list the last prompt is computed to its end")
class ListRunsOn(LeakingEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except asyncio.CancelledError:
            self.leaked += isinstance(prompt, list)
            raise


@fault("cancellation.others-go-on", "an abort ends whatever runs")
class AbortsAll(BrokenBackend):
    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        self.ids = getattr(self, "ids", set[str]())
        if request.max_tokens == 40:  # noqa: PLR2004 the check's own number: a narrow fault
            self.ids.add(request.id)
        return self.inner.stream(request)

    async def abort(self, request_id: str) -> None:
        for each in getattr(self, "ids", set[str]()):
            await self.inner.abort(each)
        await self.inner.abort(request_id)


@fault("cancellation.a-storm", "of many that leave at once some are forgotten")
class ForgetsSome(Leaks):
    def leaks(self, request_id: str) -> bool:
        loop = asyncio.get_running_loop()
        self.times = [
            *(time for time in getattr(self, "times", list[float]()) if loop.time() - time < _AT_ONCE),
            loop.time(),
        ]
        return len(self.times) == 12  # noqa: PLR2004 more than any other check leaves at once


@fault("cancellation.error-in-the-body", "an exception of the caller is swallowed")
class Swallows(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        class Swallowing(BrokenStream):
            async def __aexit__(self, *error: object) -> Any:
                await super().__aexit__(*error)
                return isinstance(error[1], Exception)

        return Swallowing(self.inner.stream(prompt, **options), lambda chunks: self.chunks(chunks, options))
