"""How an engine is brought up: :class:`EngineConfig` and its parts.

The fields mean the same on every engine. A plugin maps each field that differs from its default, or the
load is refused with the field's name. ``None`` always means "the engine decides".
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from anyengine._model import AsTuple, StrictModel
from anyengine.errors import InvalidConfig

__all__ = [
    "EngineConfig",
    "KVCacheConfig",
    "LoRAConfig",
    "ParallelConfig",
    "SchedulingConfig",
    "SpeculativeConfig",
]

DType = Literal["auto", "float32", "bfloat16", "float16"]
Positive = Annotated[int, Field(ge=1)]


class _Config(StrictModel):
    error: ClassVar = InvalidConfig


class KVCacheConfig(_Config):
    """Where keys and values are kept.

    Attributes:
        dtype: element type of the cache, ``auto`` for the model's; engines name what else they have.
        block_size: tokens in a block of the paged cache.
        prefix_caching: reuse the blocks of equal prompt prefixes. None: the engine's own default.
        gpu_memory_fraction: share of the device's **total** memory for everything that the engine keeps there
            (weights, activations, cache), in (0, 1]. Each plugin converts it to its engine's own meaning.
        capacity_tokens: capacity in tokens, instead of a share of memory.
    """

    dtype: str = "auto"
    block_size: Positive | None = None
    prefix_caching: bool | None = None
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    capacity_tokens: Positive | None = None


class ParallelConfig(_Config):
    """Over how many devices the model is spread: the product is the number of devices needed."""

    tensor: Positive = 1
    pipeline: Positive = 1
    data: Positive = 1
    expert: bool = False


class SchedulingConfig(_Config):
    """How requests share the engine.

    Attributes:
        max_num_seqs: sequences that the engine runs at once, all copies of the model together.
        max_num_batched_tokens: tokens that it computes in one step.
        chunked_prefill: cut long prompts into pieces that fit in a step. None: the engine's own default.
        max_queued_requests: requests that may wait in the SDK for the engine; one more is refused with
            :class:`~anyengine.errors.Overloaded`. A request with ``n`` counts ``n`` times.
    """

    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    chunked_prefill: bool | None = None
    max_queued_requests: Annotated[int, Field(ge=0)] = 1024


class SpeculativeConfig(_Config):
    """Speculative decoding: a cheap proposer drafts tokens, the model verifies them in one step.

    The output's distribution is the model's own, exactly (Leviathan et al. 2023, arXiv:2211.17192).

    Attributes:
        method: ``ngram`` looks the last tokens up in the text so far; the others run a network.
        num_speculative_tokens: tokens drafted a step.
        model: the proposer's checkpoint: a folder, a hub id, or a name built into the engine's plugin.
        ngram_min: shortest match that ``ngram`` looks up, in tokens.
        ngram_max: longest match that ``ngram`` looks up, in tokens.
    """

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "mtp"]
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] = 4
    model: str | None = None
    ngram_min: Positive = 2
    ngram_max: Positive = 4

    @model_validator(mode="after")
    def _consistent(self) -> SpeculativeConfig:
        # A field of another method would be read by nobody, and nothing is ever ignored.
        of_ngram = [name for name in ("ngram_min", "ngram_max") if name in set(self.changed())]
        if self.method != "ngram" and of_ngram:
            raise ValueError(f"{of_ngram[0]} belongs to method 'ngram', not to {self.method!r}")
        if self.method == "ngram" and self.model is not None:
            raise ValueError("model belongs to a proposer that runs a network; method 'ngram' has none")
        if self.method == "draft_model" and self.model is None:
            raise ValueError("method 'draft_model' needs model, the proposer's checkpoint")
        if self.ngram_min > self.ngram_max:
            raise ValueError(f"ngram_min, {self.ngram_min}, is more than ngram_max, {self.ngram_max}")
        return self


class LoRAConfig(_Config):
    """Low-rank adapters.

    Attributes:
        adapters: name → folder or hub id, loaded at start. Requests name the adapter.
        max_rank: largest rank that will be loaded.
        max_loras: adapters in one batch. None: as many as `adapters` names, and at least one.
    """

    adapters: dict[str, str] = Field(default_factory=dict)
    max_rank: Positive = 16
    max_loras: Positive | None = None

    @property
    def most_in_a_batch(self) -> int:
        """``max_loras``, worked out."""
        return self.max_loras or max(1, len(self.adapters))


class EngineConfig(_Config):
    """Everything that :meth:`anyengine.Engine.load` takes beside the engine's name.

    Attributes:
        model: a local folder, a Hugging Face hub id, or a name built into the engine's plugin.
            None: the plugin's built-in model, if it has one.
        revision: branch, tag or commit of a hub model; resolved once and pinned.
        tokenizer: folder or hub id of the tokenizer. None: the model's.
        tokenizer_revision: like ``revision``.
        task: ``generate`` text, or ``embed`` it.
        trust_remote_code: let the checkpoint bring Python code. Off, and refused where an engine has no such thing.
        dtype: of the weights in memory; ``auto`` is the checkpoint's.
        max_model_len: context in tokens, prompt and completion together. None: the model's own.
        quantization: scheme applied to the weights while loading, by its name in the engine's capabilities.
        kv_cache: see :class:`KVCacheConfig`.
        parallel: see :class:`ParallelConfig`.
        scheduling: see :class:`SchedulingConfig`.
        execution: ``eager`` launches kernels one by one, ``graph`` replays captured graphs.
        speculative: see :class:`SpeculativeConfig`.
        lora: see :class:`LoRAConfig`.
        determinism: what a given seed promises. ``none``: nothing. ``run``: the same requests in the same order give
            the same tokens. ``batch-invariant``: a request gives the same tokens whatever else is in the batch.
        seed: the engine's own seed (weights' dropout, samplers without a request seed).
        device: ``auto``, ``cpu``, ``cuda``; an engine names what it has.
        devices: indices of the devices to use, as the driver counts them.
        isolation: ``process`` runs the engine in a worker process, ``none`` in this one; ``auto`` chooses ``none`` only
            where the plugin declares itself safe for it.
        environment: name of the environment whose interpreter runs the worker.
        env: environment variables of the worker.
        startup_timeout: seconds that loading may take.
        health_timeout: seconds within which a worker's engine must answer when it is asked whether it works; else it is
            taken for hung, every request fails with :class:`~anyengine.errors.EngineUnresponsive`, and the worker is
            ended. A single step of the engine must fit. A request fails with the same error (in the application's
            process: after 60) if its abort does not return within as many seconds, or its stream does not end after it.
        chat_template: Jinja source that replaces the model's.
        native: the engine's own options, passed as they are. One that clashes with a field above is an error.
    """

    model: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    task: Literal["generate", "embed"] = "generate"
    trust_remote_code: bool = False
    dtype: DType = "auto"
    max_model_len: Positive | None = None
    quantization: str | None = None
    kv_cache: KVCacheConfig = Field(default_factory=KVCacheConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    scheduling: SchedulingConfig = Field(default_factory=SchedulingConfig)
    execution: Literal["auto", "eager", "graph"] = "auto"
    speculative: SpeculativeConfig | None = None
    lora: LoRAConfig | None = None
    determinism: Literal["none", "run", "batch-invariant"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    device: str = "auto"
    devices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AsTuple] | None = None
    isolation: Literal["auto", "process", "none"] = "auto"
    environment: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    startup_timeout: Annotated[float, Field(gt=0)] = 600.0
    health_timeout: Annotated[float, Field(gt=0)] = 60.0
    chat_template: str | None = None
    native: dict[str, Any] = Field(default_factory=dict)
