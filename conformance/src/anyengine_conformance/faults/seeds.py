"""Engines that draw from something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, fault
from anyengine_conformance.faults.stopping import ChangedCompletion, ChangedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine import Completion
    from anyengine.backend import TokenRequest


def _with(request: TokenRequest, **fields: Any) -> TokenRequest:
    return replace(request, sampling=request.sampling.model_copy(update=fields))


@fault("seeds.draws-follow-the-distribution", "logits are divided by 2 before the draw")
class TwiceAsHot(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return _with(request, temperature=2.0) if request.sampling.allowed_token_ids else request


@fault("seeds.choices-are-independent-draws", "each second completion repeats the one before it")
class PairsAlike(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        _, _, index = request.id.partition(".")
        if not index or request.sampling.seed is None or request.max_tokens != 1:
            return request
        return _with(request, seed=request.sampling.seed - int(index) % 2)


@fault("seeds.unseeded-varies", "without a seed the engine uses 0")
class SeedZero(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sampling = options.get("sampling")
        if isinstance(sampling, SamplingParams) and sampling.seed is None and not sampling.greedy:
            return prompt, {**options, "sampling": sampling.model_copy(update={"seed": 0})}
        return prompt, options


@fault("seeds.unseeded-choices-vary", "the n of a request share one random stream")
class OneStreamForAll(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return _with(request, seed=7) if "." in request.id and request.max_tokens > 1 else request


@fault("seeds.seed-is-reported", "every completion reports the first seed")
class FirstSeedReported(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(completion, alternatives=[replace(a, seed=completion.seed) for a in completion.alternatives])


@fault("seeds.seeds-differ", "seeds are cut to 32 bits")
class ThirtyTwoBits(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        seed = request.sampling.seed
        return request if seed is None else _with(request, seed=seed % 2**32)


@fault("seeds.seeds-differ", "every request gets the same seed", wide=True)
class SameForAll(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return _with(request, seed=0)


@fault("seeds.greedy-needs-none", "a greedy completion reports a seed")
class GreedySeed(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(completion, seed=completion.seed or 1)


@fault("seeds.run-repeats", "each load starts its random streams elsewhere")
class EachLoadElsewhere(ChangedRequest):
    loads = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        type(self).loads += 1

    def change(self, request: TokenRequest) -> TokenRequest:
        seed = request.sampling.seed
        return request if seed is None or self.config.determinism == "none" else _with(request, seed=seed + self.loads)
