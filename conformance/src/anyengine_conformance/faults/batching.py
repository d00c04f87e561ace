"""Engines in which requests do not keep to themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, fault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyengine import Completion
    from anyengine.backend import TokenDelta, TokenRequest


class Crowded(BrokenBackend):
    """Does something wrong to requests while others run.

    Attributes:
        running: requests that run, in order of arrival.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.running: list[TokenRequest] = []
        self.before: TokenRequest | None = None

    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        """What becomes of a request beside others."""
        return request

    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        changed = self.beside(request, self.running)
        self.before = request
        self.running.append(request)
        try:
            async for delta in self.inner.stream(changed):
                yield delta
        finally:
            self.running.remove(request)


@fault("batching.no-cross-talk", "beyond 16 requests, one is computed with another's prompt")
class OthersPrompt(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if len(others) != 20 or request.max_tokens != 16:  # noqa: PLR2004 a place in the batch
            return request
        return replace(request, prompt_token_ids=others[0].prompt_token_ids[:-4])


@fault("batching.alone-as-in-a-batch", "beside others the last token of the prompt is lost")
class LastTokenLost(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if len(others) != 3 or request.max_tokens != 16 or not request.sampling.greedy:  # noqa: PLR2004
            return request
        return replace(request, prompt_token_ids=request.prompt_token_ids[:-1])


@fault("batching.order-does-not-matter", "a short prompt that comes just after a long one is taken for its beginning")
class AfterTheLong(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        long = self.before is not None and len(self.before.prompt_token_ids) > 3 * len(request.prompt_token_ids)
        if not long or not others or request.max_tokens != 16:  # noqa: PLR2004 the check's own
            return request
        return replace(request, prompt_token_ids=request.prompt_token_ids[:-2])


class OneByOne(BrokenBackend):
    """Static batches of one."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lock = asyncio.Lock()

    def waits(self, request: TokenRequest) -> bool:
        """Whether it takes part."""
        return True

    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        if not self.waits(request):
            async for delta in self.inner.stream(request):
                yield delta
            return
        async with self.lock:
            async for delta in self.inner.stream(request):
                yield delta


@fault("batching.short-overtakes-long", "the next batch starts when the one before has ended")
class Static(OneByOne):
    def waits(self, request: TokenRequest) -> bool:
        return request.max_tokens in (3, 400)


@fault("batching.throughput-grows", "requests are computed one after another")
class Serial(OneByOne):
    def waits(self, request: TokenRequest) -> bool:
        return request.max_tokens == 32  # noqa: PLR2004 the check's own: a narrow fault


@fault("batching.nothing-lost-when-cache-is-short", "a preempted request goes on without its last tokens")
class LostInPreemption(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if self.config.kv_cache.capacity_tokens != 512 or len(others) < 4:  # noqa: PLR2004 the variant's own
            return request
        return replace(request, max_tokens=(request.max_tokens or 2) - 1)


@fault("batching.each-gets-its-length", "beyond 40 requests, one gets the length of the one before")
class OthersLength(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if self.before is None or (request.max_tokens or 99) > 12 or len(others) < 40:  # noqa: PLR2004
            return request
        return replace(request, max_tokens=self.before.max_tokens)


@fault("batching.abort-leaves-the-others", "aborting one request ends the one after it too")
class AbortsTwo(Crowded):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.ids: list[str] = []

    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if request.max_tokens == 40:  # noqa: PLR2004 the check's own: a narrow fault
            self.ids.append(request.id)
        return request

    async def abort(self, request_id: str) -> None:
        ids = self.ids
        await self.inner.abort(request_id)
        if request_id in ids:
            place = ids.index(request_id) + 1
            for other in ids[place : place + 1]:
                await self.inner.abort(other)


@fault("batching.parameters-do-not-leak", "a slot keeps the temperature of the request before")
class SlotKeepsTemperature(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        if request.max_tokens != 12 or len(others) != 4 or request.structured is not None:  # noqa: PLR2004
            return request
        hot = request.sampling.model_copy(update={"temperature": 1.9, "seed": 3})
        return replace(request, sampling=hot)


@fault("batching.structured-beside-plain", "the mask of a structure is used for the next request too")
class MaskLeaks(Crowded):
    def beside(self, request: TokenRequest, others: list[TokenRequest]) -> TokenRequest:
        last = self.before
        if request.structured is not None or last is None or last.structured is None or request.max_tokens != 12:  # noqa: PLR2004
            return request
        return replace(request, structured=last.structured)


@fault("batching.invariant-bit-for-bit", "the last bits of log-probabilities depend on the batch")
class BitsDiffer(BrokenEngine):
    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.open: list[int] = []

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        size = len(await self.inner.tokenize(prompt)) if isinstance(prompt, str) else 0
        self.open.append(size)
        try:
            await asyncio.sleep(0)
            crowded = self.crowded() and self.inner.config.determinism == "batch-invariant"
            answer = await super().generate(prompt, **options)
        finally:
            self.open.remove(size)
        return self.rounded(answer) if crowded else answer

    def crowded(self) -> bool:
        return len(self.open) > 1

    def rounded(self, answer: Completion) -> Completion:
        """As from another kernel."""
        if not answer.logprobs:
            return answer
        moved = [replace(entry, logprob=entry.logprob * (1 + 2**-20)) for entry in answer.logprobs]
        return replace(answer, logprobs=moved)


@fault("batching.invariant-bit-for-bit", "the last bits of log-probabilities depend on a batch of over 512 tokens")
class BitsDifferInLargeBatches(BitsDiffer):
    def crowded(self) -> bool:
        return sum(self.open) > 512  # noqa: PLR2004 in the words above
