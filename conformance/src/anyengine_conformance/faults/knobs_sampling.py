"""Engines that take sampling fields for something else."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import fault
from anyengine_conformance.families.knobs_sampling import SEEDED
from anyengine_conformance.faults.stopping import ChangedRequest

if TYPE_CHECKING:
    from anyengine import SamplingParams
    from anyengine.backend import TokenRequest


class ChangedSampling(ChangedRequest):
    """Changes sampling fields before the engine sees them."""

    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        """Those that become something else."""
        return {}

    def change(self, request: TokenRequest) -> TokenRequest:
        changed = self.fields(request.sampling)
        return replace(request, sampling=request.sampling.model_copy(update=changed)) if changed else request


@fault("knobs.temperature-zero-is-greedy", "the temperature is ignored", wide=True)
class TemperatureIgnored(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": 1.0}


@fault("knobs.temperature-zero-is-greedy", "temperature 0 is taken for 'unset'")
class ZeroIsUnset(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": 1.0, "seed": 1} if sampling.temperature == 0 else {}


@fault("knobs.temperature-below-one-sharpens", "temperatures below 1 are raised to 1")
class AtLeastOne(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": 1.0} if 0 < sampling.temperature < 1 else {}


@fault("knobs.temperature-above-one-flattens", "temperatures above 1 are lowered to 1")
class AtMostOne(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"temperature": min(1.0, sampling.temperature)}


@fault("knobs.top-k-one-is-greedy", "top_k=1 is taken for 'unset'")
class TopKOneIsUnset(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_k": 0} if sampling.top_k == 1 else {}


@fault("knobs.top-k-bounds-the-support", "one more than top_k are kept")
class OneMoreThanTopK(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_k": sampling.top_k + 1} if sampling.top_k > 1 else {}


@fault("knobs.top-k-bounds-the-support", "top_k is taken for greedy")
class TopKIsGreedy(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_k": 1} if sampling.top_k else {}


@fault("knobs.top-p-bounds-the-mass", "top_p is ignored")
class TopPIgnored(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_p": 1.0}


@fault("knobs.smallest-top-p-is-greedy", "a top_p below 0.01 is taken for 'unset'")
class SmallTopPIsUnset(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"top_p": 1.0} if sampling.top_p < 0.01 else {}  # noqa: PLR2004 the check's is smaller


@fault("knobs.largest-min-p-is-greedy", "min_p=1 is taken for 'unset'")
class MinPOneIsUnset(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"min_p": 0.0} if sampling.min_p == 1 else {}


@fault("knobs.min-p-bounds-the-ratio", "min_p is ignored")
class MinPIgnored(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"min_p": 0.0}


@fault("knobs.seed-is-used", "seeds are ignored", wide=True)
class SeedsIgnored(ChangedSampling):
    requests = count()

    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"seed": next(self.requests)}


@fault("knobs.seed-is-used", "every request gets the seed 0")
class SeedIsZero(ChangedSampling):
    def change(self, request: TokenRequest) -> TokenRequest:
        return super().change(request) if request.max_tokens == SEEDED else request

    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"seed": 0} if sampling.seed is not None else {}


@fault("knobs.repetition-penalty-discourages", "repetition penalties above 1 are ignored")
class NoRepetitionPenalty(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"repetition_penalty": min(1.0, sampling.repetition_penalty)}


@fault(
    "knobs.repetition-penalty-below-one-encourages", "repetition penalties below 1 are raised to 1", base="reference"
)
class NoRepetitionReward(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"repetition_penalty": max(1.0, sampling.repetition_penalty)}


@fault("knobs.presence-penalty-counts-once", "the prompt's tokens count as present")
class PromptIsPresent(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        penalty = request.sampling.presence_penalty
        if penalty <= 0:
            return request
        bias = dict.fromkeys(request.prompt_token_ids, -penalty)
        return replace(request, sampling=request.sampling.model_copy(update={"logit_bias": bias}))


@fault("knobs.presence-penalty-counts-once", "the presence penalty counts each occurrence")
class PresenceCountsEach(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        penalty = sampling.presence_penalty
        return {"presence_penalty": 0.0, "frequency_penalty": penalty} if penalty > 0 else {}


@fault("knobs.negative-presence-penalty-encourages", "negative penalties are taken for 0")
class NoNegativePenalty(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"presence_penalty": max(0.0, sampling.presence_penalty)}


@fault("knobs.frequency-penalty-counts-each", "the frequency penalty counts once")
class FrequencyCountsOnce(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        penalty = sampling.frequency_penalty
        return {"presence_penalty": penalty, "frequency_penalty": 0.0} if penalty else {}


@fault("knobs.frequency-penalty-counts-each", "the frequency penalty has the wrong sign")
class FrequencyRewards(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"frequency_penalty": -sampling.frequency_penalty} if sampling.frequency_penalty > 0 else {}


@fault("knobs.logit-bias-forces", "a positive bias is cut to 1")
class BiasCut(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        bias = sampling.logit_bias
        return {"logit_bias": {token: min(1.0, value) for token, value in bias.items()}} if bias else {}


@fault("knobs.logit-bias-bans", "a bias loses its sign")
class BiasWithoutSign(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        bias = sampling.logit_bias
        return {"logit_bias": {token: abs(value) for token, value in bias.items()}} if bias else {}


@fault("knobs.allowed-token-ids-only", "more than a few allowed ids are ignored")
class AllowedIgnored(ChangedSampling):
    def fields(self, sampling: SamplingParams) -> dict[str, Any]:
        return {"allowed_token_ids": None} if len(sampling.allowed_token_ids or ()) > 5 else {}  # noqa: PLR2004


@fault("knobs.bad-words-of-one-token", "bad words of one token are ignored")
class ShortBadWordsIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, bad_word_ids=tuple(word for word in request.bad_word_ids if len(word) > 1))


@fault("knobs.bad-words-of-several-tokens", "bad words of several tokens are ignored")
class LongBadWordsIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, bad_word_ids=tuple(word for word in request.bad_word_ids if len(word) == 1))


@fault("knobs.bad-words-of-several-tokens", "every token of a bad word is banned by itself")
class BadTokens(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, bad_word_ids=tuple((token,) for word in request.bad_word_ids for token in word))
