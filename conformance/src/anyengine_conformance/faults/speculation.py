"""Engines whose drafts change the answer, or are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.capabilities import Conflict
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, fault
from anyengine_conformance.faults.stopping import ChangedRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from anyengine import Capabilities, Chunk, Completion, EngineStats, SamplingParams
    from anyengine.backend import TokenRequest


class Speculating(ChangedRequest):
    """Healthy without speculation, and without the method that a fault is of.

    Attributes:
        method: of the fault.
    """

    method = "ngram"

    def broken(self, request: TokenRequest) -> TokenRequest:
        """What becomes of a request."""
        return request

    def change(self, request: TokenRequest) -> TokenRequest:
        speculative = self.config.speculative
        return self.broken(request) if speculative and speculative.method == self.method else request


def _with(request: TokenRequest, **fields: Any) -> TokenRequest:
    sampling: SamplingParams = request.sampling
    return replace(request, sampling=sampling.model_copy(update=fields))


class AcceptsTooMuch(Speculating):
    """Greedy drafts are kept where they are likely, not only where they are the best."""

    lengths = (40,)

    def broken(self, request: TokenRequest) -> TokenRequest:
        if not request.sampling.greedy or request.max_tokens not in self.lengths:
            return request
        return _with(request, temperature=1.5, seed=3)


@fault("speculation.ngram-greedy-is-the-models", "greedy drafts are kept where they are likely")
class NGramAcceptsTooMuch(AcceptsTooMuch):
    pass


@fault("speculation.draft-greedy-is-the-models", "greedy drafts are kept where they are likely", base="reference")
class DraftAcceptsTooMuch(AcceptsTooMuch):
    method = "draft_model"


@fault("speculation.ngram-batch-is-the-models", "in a batch greedy drafts are kept where they are likely")
class NGramBatch(AcceptsTooMuch):
    lengths = (20,)


@fault(
    "speculation.draft-batch-is-the-models", "in a batch greedy drafts are kept where they are likely", base="reference"
)
class DraftBatch(AcceptsTooMuch):
    method = "draft_model"
    lengths = (20,)


class Unverified(Speculating):
    """Drafted tokens are kept more often than they may be: the distribution is sharper."""

    def broken(self, request: TokenRequest) -> TokenRequest:
        if request.max_tokens != 4 or not request.sampling.allowed_token_ids:  # noqa: PLR2004 the check's own
            return request
        return _with(request, temperature=0.5)


@fault("speculation.ngram-draws-follow-the-model", "drafts are kept too often")
class NGramUnverified(Unverified):
    pass


@fault("speculation.draft-draws-follow-the-model", "drafts are kept too often", base="reference")
class DraftUnverified(Unverified):
    method = "draft_model"


class Counters(BrokenBackend):
    """Reports something else."""

    def counted(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """The fields of SpeculativeStats that change."""
        return {}

    async def stats(self) -> EngineStats:
        stats = await self.inner.stats()
        speculative = stats.speculative
        if speculative is None:
            return stats
        numbers = {name: getattr(speculative, name) for name in speculative.__struct_fields__}
        return replace(stats, speculative=replace(speculative, **self.counted(numbers)))


@fault("speculation.ngram-drafts-are-kept", "nothing is ever accepted")
class NothingKept(Counters):
    def counted(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {"accepted_tokens": 0, "accepted_per_position": tuple(0 for _ in numbers["accepted_per_position"] or ())}


@fault("speculation.draft-drafts-are-kept", "nothing is ever accepted", base="reference")
class DraftNothingKept(NothingKept):
    pass


@fault("speculation.ngram-counters-add-up", "accepted tokens are counted at the wrong position")
class WrongPosition(Counters):
    def counted(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {"accepted_per_position": tuple(reversed(numbers["accepted_per_position"] or ()))}


class RunKept(BrokenEngine):
    """A run of accepted tokens is kept whole."""

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        speculative = self.inner.config.speculative
        if isinstance(completion, list) or not speculative or options.get("max_tokens") != 3:  # noqa: PLR2004
            return completion
        return replace(completion, token_ids=[*completion.token_ids, completion.token_ids[-1]])


@fault("speculation.ngram-stops-inside-a-run", "max_tokens is looked at after a run only")
class NGramRunKept(RunKept):
    pass


@fault("speculation.draft-stops-inside-a-run", "max_tokens is looked at after a run only", base="reference")
class DraftRunKept(RunKept):
    pass


@fault("speculation.ngram-min-tokens-holds", "min_tokens is looked at after a run only")
class MinTokensAfterTheRun(Speculating):
    def broken(self, request: TokenRequest) -> TokenRequest:
        return replace(request, min_tokens=0) if request.min_tokens in (3, 6) else request


@fault("speculation.ngram-logprobs-are-the-models", "log-probabilities are those of the position before")
class ShiftedLogprobs(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        speculative = getattr(self.inner.config, "speculative", None)
        if isinstance(completion, list) or not speculative or not completion.logprobs:
            return completion
        values = [entry.logprob for entry in completion.logprobs]
        shifted = [
            replace(entry, logprob=value)
            for entry, value in zip(completion.logprobs, [values[-1], *values[:-1]], strict=True)
        ]
        return replace(completion, logprobs=shifted)


@fault("speculation.ngram-seeds-vary", "drafts are verified with one generator for all")
class OneGenerator(Speculating):
    def broken(self, request: TokenRequest) -> TokenRequest:
        return _with(request, seed=1) if request.sampling.seed else request


@fault("speculation.ngram-usage-counts", "tokens of drafts are counted for the caller")
class CountsDrafts(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        async for chunk in chunks:
            if chunk.finish is None or options.get("max_tokens") != 17:  # noqa: PLR2004 the check's own
                yield chunk
                continue
            usage = replace(chunk.finish.usage, completion_tokens=chunk.finish.usage.completion_tokens + 3)
            yield replace(chunk, finish=replace(chunk.finish, usage=usage))


@fault("speculation.conflicts-are-refused", "a conflict is declared, and not refused")
class TakesBoth(BrokenEngine):
    @property
    def capabilities(self) -> Capabilities:
        """With a conflict that nobody knows of."""
        capabilities: Capabilities = self.inner.capabilities
        if self.inner.config.speculative is None:
            return capabilities
        conflict = Conflict("config.speculative", "sampling.min_p", "not together")
        return replace(capabilities, conflicts=(*capabilities.conflicts, conflict))
