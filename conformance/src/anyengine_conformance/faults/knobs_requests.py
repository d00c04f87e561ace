"""Engines that take request fields for something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, BrokenPlugin, fault, sampling_of, with_default
from anyengine_conformance.faults.stopping import ChangedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine import Completion, EngineConfig
    from anyengine.backend import Backend, TokenRequest
    from anyengine.hub import ModelFiles


@fault("knobs.min-tokens-holds-the-end", "min_tokens is ignored where there is a bias")
class MinIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, min_tokens=0) if request.sampling.logit_bias else request


@fault("knobs.ignore-eos-changes-the-end", "ignore_eos is ignored where there is a bias")
class IgnoreEosIgnored(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        biased = sampling_of(options).logit_bias
        return prompt, {**options, "ignore_eos": False} if biased else options


@fault("knobs.stop-token-ids-change-the-end", "stop tokens are ignored where there is a bias")
class StopsIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, stop_token_ids=frozenset()) if request.sampling.logit_bias else request


@fault("knobs.priority-decides-who-is-next", "priorities are ignored")
class PriorityIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, priority=0)


@fault("knobs.priority-decides-who-is-next", "the higher priority runs first")
class HigherFirst(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, priority=-request.priority)


@fault("knobs.cache-salt-parts-the-cache", "salts are ignored")
class SaltIgnored(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, cache_salt=None)


class Reconfigured(BrokenPlugin):
    """Loads with other values of one part of the configuration."""

    part = ""
    values: Mapping[str, Any] = {}

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        part = getattr(config, self.part)
        changed = {name: value for name, value in self.values.items() if name in part.changed()}
        update = {self.part: part.model_copy(update=changed)}
        inner = await self.inner.load(config.model_copy(update=update) if changed else config, model)
        return self.backend(inner, config)


@fault("knobs.prefix-caching-on-reuses", "nothing is ever cached")
class NeverCached(Reconfigured):
    part = "kv_cache"
    values = {"prefix_caching": False}  # noqa: RUF012


@fault("knobs.logprobs-on-request", "log-probabilities come without being asked for")
class LogprobsUnasked(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, with_default(prompt, options, logprobs=0) if "prompt_logprobs" not in options else options


@fault("knobs.prompt-logprobs-on-request", "log-probabilities of the prompt come without being asked for")
class PromptLogprobsUnasked(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, with_default(prompt, options, prompt_logprobs=0) if "logprobs" not in options else options


@fault("knobs.n-gives-so-many", "every completion has the index 0")
class IndexIsZero(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or options.get("n", 1) != 5:  # noqa: PLR2004 the check's number
            return completion
        return replace(completion, alternatives=[replace(other, index=0) for other in completion.alternatives])


@fault("knobs.max-tokens-bounds", "max_tokens is rounded up to a multiple of 4")
class RoundedUp(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "max_tokens": 12} if options.get("max_tokens") == 9 else options  # noqa: PLR2004


@fault("knobs.timeout-ends-it", "short timeouts are ignored")
class TimeoutIgnored(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        short = options.get("timeout") == 0.02  # noqa: PLR2004 the check's number
        return prompt, {name: value for name, value in options.items() if not (short and name == "timeout")}
