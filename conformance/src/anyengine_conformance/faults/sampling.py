"""Engines that draw from another distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import fault
from anyengine_conformance.faults.knobs_sampling import ChangedSampling
from anyengine_conformance.faults.stopping import ChangedRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyengine import SamplingParams
    from anyengine.backend import TokenDelta, TokenRequest


@fault("sampling.neutral-is-the-model", "without parameters the engine uses its own temperature")
class OwnTemperature(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        neutral = set(sampling.changed()) <= {"seed"}
        return {"temperature": 0.7} if neutral else {}


@fault("sampling.temperature-is-exact", "the temperature is rounded to halves")
class RoundedTemperature(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": 1.0} if sampling.temperature in (0.6, 1.7) else {}


@fault("sampling.temperature-is-exact", "each temperature is nearer to 1: 0.66 for 0.6, 1.53 for 1.7", wide=True)
class NearerToOne(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": sampling.temperature**0.8}


@fault("sampling.temperature-is-exact", "every temperature is 15% too high, the neutral one too", wide=True)
class TooHot(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": sampling.temperature * 1.15}


@fault("sampling.top-k-is-exact", "top_k keeps one too few")
class OneFewer(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        plain = sampling.temperature == 1 and sampling.top_p == 1
        return {"top_k": sampling.top_k - 1} if sampling.top_k > 2 and plain else {}  # noqa: PLR2004


@fault("sampling.top-p-is-exact", "top_p leaves out the token with which the sum reaches it")
class LastLeftOut(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_p": sampling.top_p * 0.75} if sampling.top_p < 1 and not sampling.top_k else {}


@fault("sampling.min-p-is-exact", "min_p is a least probability, not a share of the largest")
class AbsoluteMinP(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"min_p": min(1.0, sampling.min_p * 2)} if sampling.min_p and not sampling.top_k else {}


@fault("sampling.truncations-in-order", "beside top_p, which is a share of the vocabulary, top_k is ignored")
class WrongOrder(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_k": 0} if sampling.top_k and sampling.top_p < 1 else {}


@fault("sampling.allowed-tokens-in-proportion", "allowed tokens are drawn evenly")
class EvenlyAllowed(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": 50.0} if len(sampling.allowed_token_ids or ()) == 6 and sampling.seed else {}  # noqa: PLR2004


@fault("sampling.bias-is-added", "a bias is halved")
class HalfBias(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        bias = sampling.logit_bias
        return {"logit_bias": {token: value / 2 for token, value in bias.items()}} if bias else {}


@fault("sampling.later-tokens-follow-the-first", "each token is drawn with the same random number")
class SameNumber(ChangedRequest):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        async for delta in self.inner.stream(request):
            pair = len(delta.token_ids) == 1 and request.max_tokens == 2  # noqa: PLR2004 the check's own
            first = getattr(self, "first", {})
            self.first = first
            if pair and len(request.sampling.allowed_token_ids or ()) == 3:  # noqa: PLR2004 the check's own
                before = first.setdefault(request.id, delta.token_ids[0])
                yield replace(delta, token_ids=[before])
            else:
                yield delta


@fault("sampling.penalties-follow-the-formula", "frequency is counted once")
class FrequencyOnce(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        both = sampling.presence_penalty and sampling.frequency_penalty
        total = sampling.presence_penalty + sampling.frequency_penalty
        return {"presence_penalty": total, "frequency_penalty": 0.0} if both else {}


@fault("sampling.repetition-penalty-follows-the-formula", "the penalty is applied to the completion's tokens only")
class CompletionOnly(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"repetition_penalty": 1.0} if sampling.allowed_token_ids else {}
