"""Engines that load otherwise than they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, BrokenPlugin, fault
from anyengine_conformance.faults.knobs_requests import Reconfigured
from anyengine_conformance.faults.stopping import ChangedRequest

if TYPE_CHECKING:
    from anyengine.backend import BackendInfo, EngineDescription, TokenRequest


class SaysTwo(BrokenBackend):
    """Names the number that it was asked for."""

    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, max_num_seqs=self.config.scheduling.max_num_seqs)


@fault("knobs.max-num-seqs-bounds-what-runs", "max_num_seqs is reported, and not held")
class MoreThanMaxNumSeqs(Reconfigured):
    backend = SaysTwo
    part = "scheduling"
    values = {"max_num_seqs": 8}  # noqa: RUF012


@fault("knobs.batched-tokens-cut-prompts", "max_num_batched_tokens is ignored")
class StepsOfAnySize(Reconfigured):
    part = "scheduling"
    values = {"max_num_batched_tokens": 8192}  # noqa: RUF012


@fault("knobs.prefix-caching-off-computes", "prefixes are always cached")
class AlwaysCached(Reconfigured):
    part = "kv_cache"
    values = {"prefix_caching": True}  # noqa: RUF012


@fault("knobs.block-size-is-the-caches-unit", "block_size is ignored")
class OwnBlockSize(Reconfigured):
    part = "kv_cache"
    values = {"block_size": 16}  # noqa: RUF012


@fault("knobs.capacity-tokens-is-the-caches-size", "capacity_tokens is counted in blocks")
class CapacityInBlocks(Reconfigured):
    part = "kv_cache"
    values = {"capacity_tokens": 4096 * 16}  # noqa: RUF012


@fault("knobs.dtype-float32", "another dtype is reported")
class OtherDtype(BrokenBackend):
    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, dtype="bfloat16" if self.config.dtype == "float32" else "float32")


class _EveryDtype(BrokenPlugin):
    """Declares every dtype, and loads float32."""

    def describe(self) -> EngineDescription:
        described = self.inner.describe()
        every = frozenset({"float32", "bfloat16", "float16"})
        return replace(described, capabilities=replace(described.capabilities, dtypes=every))


@fault("knobs.dtype-bfloat16", "bfloat16 is declared, and float32 loaded")
class NoBfloat16(_EveryDtype):
    pass


@fault("knobs.dtype-float16", "float16 is declared, and float32 loaded")
class NoFloat16(_EveryDtype):
    pass


@fault("knobs.device-and-execution-are-as-asked", "asked for a device by name, the engine takes another")
class OtherDevice(BrokenBackend):
    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, device="gpu" if self.config.execution == "eager" else self.inner.info.device)


class SeedsEveryRequest(ChangedRequest):
    """Begins every request with the engine's seed."""

    @property
    def info(self) -> BackendInfo:
        info = self.inner.info
        config = info.capabilities.config | {"seed"}
        return replace(info, capabilities=replace(info.capabilities, config=config))

    def change(self, request: TokenRequest) -> TokenRequest:
        if self.config.seed is None:
            return request
        return replace(request, sampling=request.sampling.model_copy(update={"seed": self.config.seed}))


@fault("knobs.engine-seed-leaves-requests-free", "the engine's seed begins every request")
class EngineSeedForAll(BrokenPlugin):
    backend = SeedsEveryRequest

    def describe(self) -> EngineDescription:
        described = self.inner.describe()
        config = described.capabilities.config | {"seed"}
        return replace(described, capabilities=replace(described.capabilities, config=config))


@fault("knobs.determinism-run-repeats", "seeds move on with every request")
class SeedsMoveOn(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        if self.config.determinism != "run":
            return request
        self.seen = getattr(self, "seen", 0) + 1
        return replace(request, sampling=request.sampling.model_copy(update={"seed": self.seen}))


@fault("knobs.determinism-batch-invariant-holds", "in a batch the draws are others")
class DependsOnTheBatch(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        self.open = getattr(self, "open", 0) + 1
        sampling = options.get("sampling")
        if self.open > 1 and self.inner.config.determinism == "batch-invariant" and sampling is not None:
            options["sampling"] = sampling.model_copy(update={"seed": 10_000 + self.open})
        try:
            return await super().generate(prompt, **options)
        finally:
            self.open -= 1


@fault("knobs.every-field-has-a-check", "a name is declared that is no field")
class MadeUpField(BrokenBackend):
    @property
    def info(self) -> BackendInfo:
        info = self.inner.info
        sampling = info.capabilities.sampling | {"creativity"}
        return replace(info, capabilities=replace(info.capabilities, sampling=sampling))
