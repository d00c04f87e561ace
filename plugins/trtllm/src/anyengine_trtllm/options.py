"""``EngineConfig.native``: which backend, which sampler, and TensorRT-LLM's own arguments. Pure, no TensorRT-LLM.

Beside arguments of ``LLM`` there are two names of ours: ``backend`` (``pytorch`` or ``tensorrt``) and ``engine_dir`` (a
folder for a built engine).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from anyengine.config import EngineConfig

__all__ = ["NESTED", "OWNED", "Options", "check_arguments", "parse_options"]

Sampler = Literal["TRTLLMSampler", "TorchSampler"]

#: Arguments of ``LLM`` that are decided by a field of ours, or by this package: the field to use, or "".
OWNED: Mapping[str, str] = {
    "batched_logits_processor": "",
    "context_parallel_size": "",
    "cuda_graph_config": "execution",
    "decoding_config": "speculative",
    "disable_overlap_scheduler": "",
    "dtype": "dtype",
    "enable_attention_dp": "",
    "enable_chunked_prefill": "scheduling.chunked_prefill",
    "enable_iter_perf_stats": "",
    "enable_iter_req_stats": "",
    "enable_lora": "lora",
    "enable_prompt_adapter": "",
    "gather_generation_logits": "",
    "guided_decoding_backend": "",
    "load_format": "",
    "lora_config": "lora",
    "max_batch_size": "scheduling.max_num_seqs",
    "max_beam_width": "",
    "max_input_len": "max_model_len",
    "max_num_tokens": "scheduling.max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    "mm_encoder_only": "",
    "model": "model",
    "moe_cluster_parallel_size": "parallel.expert",
    "moe_expert_parallel_size": "parallel.expert",
    "moe_tensor_parallel_size": "parallel.expert",
    "normalize_log_probs": "",
    "num_postprocess_workers": "",
    "orchestrator_type": "",
    "pipeline_parallel_size": "parallel.pipeline",
    "postprocess_tokenizer_dir": "",
    "quant_config": "quantization",
    "reasoning_parser": "",
    "revision": "revision",
    "skip_tokenizer_init": "",
    "stream_interval": "",
    "tensor_parallel_size": "parallel.tensor",
    "tokenizer": "tokenizer",
    "tokenizer_mode": "tokenizer",
    "custom_tokenizer": "tokenizer",
    "tokenizer_revision": "tokenizer_revision",
    "trust_remote_code": "trust_remote_code",
    "workspace": "engine_dir of native",
}

#: Arguments that take an object of TensorRT-LLM's: given as a table of its fields, and made of it.
NESTED: Mapping[str, str] = {
    "attention_dp_config": "AttentionDpConfig",
    "build_config": "BuildConfig",
    "cache_transceiver_config": "CacheTransceiverConfig",
    "calib_config": "CalibConfig",
    "extended_runtime_perf_knob_config": "ExtendedRuntimePerfKnobConfig",
    "moe_config": "MoeConfig",
    "nvfp4_gemm_config": "Nvfp4GemmConfig",
    "peft_cache_config": "PeftCacheConfig",
    "scheduler_config": "SchedulerConfig",
    "torch_compile_config": "TorchCompileConfig",
}

#: Fields of nested objects that a field of ours decides.
_OWNED_WITHIN: Mapping[str, Mapping[str, str]] = {
    "kv_cache_config": {
        "dtype": "kv_cache.dtype",
        "enable_block_reuse": "kv_cache.prefix_caching",
        "free_gpu_memory_fraction": "kv_cache.gpu_memory_fraction",
        "max_tokens": "kv_cache.capacity_tokens",
        "tokens_per_block": "kv_cache.block_size",
        # Either would forget tokens that the model should see.
        "max_attention_window": "",
        "sink_token_length": "",
    },
    "build_config": {
        "gather_context_logits": "",
        "gather_generation_logits": "",
        "lora_config": "lora",
        "max_batch_size": "scheduling.max_num_seqs",
        "max_beam_width": "",
        "max_draft_len": "speculative",
        "max_input_len": "max_model_len",
        "max_num_tokens": "scheduling.max_num_batched_tokens",
        "max_seq_len": "max_model_len",
        "speculative_decoding_mode": "speculative",
    },
}

#: Of the speculation that no method of ours stands for: its name there → its class.
SPECULATION: Mapping[str, str] = {"Lookahead": "LookaheadDecodingConfig", "Medusa": "MedusaDecodingConfig"}

#: Methods that keep the distribution only where the most likely token is taken.
_GREEDY_ONLY = frozenset({"eagle", "eagle3", "mtp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``native`` says.

    Attributes:
        tensorrt: run a built engine, instead of the model in PyTorch.
        engine_dir: where the built engine is, or goes.
        sampler: what draws tokens on the PyTorch backend.
        speculates: whether tokens are drafted.
        greedy_only: whether only requests with temperature 0 are right with that speculation.
        speculation: own speculation, by fields, with ``decoding_type``.
        kv_cache: further fields of ``KvCacheConfig``.
        arguments: further arguments of ``LLM``.
    """

    tensorrt: bool = False
    engine_dir: Path | None = None
    sampler: Sampler = "TRTLLMSampler"
    speculates: bool = False
    greedy_only: bool = False
    speculation: Mapping[str, Any] | None = None
    kv_cache: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def torch_sampler(self) -> bool:
        """Whether parameters that only the sampler in C++ honours are lost."""
        return self.sampler == "TorchSampler"


def parse_options(config: EngineConfig) -> Options:
    """Take ``native`` apart.

    Raises:
        InvalidConfig: names the option, and the field to use instead.
    """
    native = dict(config.native)
    backend = native.pop("backend", "pytorch")
    if backend not in {"pytorch", "tensorrt"}:
        raise _invalid("backend", f"pytorch or tensorrt, not {backend!r}")
    tensorrt = backend == "tensorrt"
    engine_dir = native.pop("engine_dir", None)
    if engine_dir is not None and not (tensorrt and isinstance(engine_dir, str) and engine_dir):
        raise _invalid("engine_dir", "a folder, for native.backend 'tensorrt'")
    speculation = _speculation(config, native.pop("speculative_config", None), tensorrt=tensorrt)
    speculates = config.speculative is not None or speculation is not None
    kv_cache = _table("kv_cache_config", native.pop("kv_cache_config", {}))
    for name in NESTED:
        if name in native:
            native[name] = _table(name, native[name])
    return Options(
        tensorrt=tensorrt,
        engine_dir=None if engine_dir is None else Path(engine_dir).expanduser().absolute(),
        sampler=_sampler(native.pop("sampler_type", None), speculates=speculates, tensorrt=tensorrt),
        speculates=speculates,
        greedy_only=speculation is not None
        or (config.speculative is not None and config.speculative.method in _GREEDY_ONLY),
        speculation=speculation,
        kv_cache=kv_cache,
        arguments=native,
    )


def _invalid(name: str, message: str) -> InvalidConfig:
    return InvalidConfig(f"native.{name}: {message}", field=f"native.{name}")


def _table(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(name, f"a table of the fields of TensorRT-LLM's object, not {type(value).__name__}")
    fields = cast("dict[str, Any]", value)
    for key, ours in _OWNED_WITHIN.get(name, {}).items():
        if key in fields:
            instead = f"use {ours}" if ours else "anyengine's semantics depend on it"
            raise _invalid(f"{name}.{key}", instead)
    return fields


def _sampler(wanted: object, *, speculates: bool, tensorrt: bool) -> Sampler:
    """The sampler in C++ honours penalties, seeds and bad words, the other one alone works with drafts."""
    possible: Sampler = "TorchSampler" if speculates else "TRTLLMSampler"
    if wanted is None:
        return possible
    if tensorrt:
        raise _invalid("sampler_type", "belongs to native.backend 'pytorch'")
    if wanted not in {"TorchSampler", possible}:
        known = "TorchSampler, with speculation" if speculates else "TRTLLMSampler or TorchSampler"
        raise _invalid("sampler_type", f"{known}; not {wanted!r}")
    return cast("Sampler", wanted)


def _speculation(config: EngineConfig, wanted: object, *, tensorrt: bool) -> dict[str, Any] | None:
    if wanted is None:
        return None
    fields = _table("speculative_config", wanted)
    if config.speculative is not None:
        raise _invalid("speculative_config", "use speculative, which is given too")
    if fields.get("decoding_type") not in SPECULATION:
        raise _invalid(
            "speculative_config.decoding_type",
            f"one of {', '.join(SPECULATION)}; for every other method use speculative",
        )
    if not tensorrt:
        raise _invalid("speculative_config", f"{fields['decoding_type']} needs native.backend 'tensorrt'")
    return fields


def check_arguments(arguments: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse arguments that TensorRT-LLM does not have, and those that a field of ours or this package decides.

    Args:
        arguments: of ``LLM``, by its names.
        known: names of all that the backend takes.

    Raises:
        InvalidConfig: names the option, and the field to use instead.
    """
    for name in arguments:
        if name in OWNED:
            raise _invalid(name, f"use {OWNED[name]}" if OWNED[name] else "anyengine's semantics depend on it")
        if name not in known:
            raise _invalid(name, "TensorRT-LLM's LLM has no argument of that name on this backend")
