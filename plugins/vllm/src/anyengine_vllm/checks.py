"""What a configuration may not ask of vLLM: on this device, for this task, or by vLLM's own options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from anyengine.backend.dtypes import own_dtype
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.quantization import read_stored

from anyengine_vllm import versions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["OWNED", "check_device", "check_embed", "check_model", "check_native", "check_stored", "unsupported"]

#: Arguments of vLLM that are decided by a field of ours, or by this package: the field that a clash is with.
OWNED: Mapping[str, str] = {
    "convert": "task",
    "data_parallel_size": "parallel.data",
    "disable_log_stats": "",
    "dtype": "dtype",
    "enable_chunked_prefill": "scheduling.chunked_prefill",
    "enable_expert_parallel": "parallel.expert",
    "enable_lora": "lora",
    "enable_prefix_caching": "kv_cache.prefix_caching",
    "enable_sleep_mode": "",
    "block_size": "kv_cache.block_size",
    "device_ids": "devices",
    "diffusion_config": "",
    "enforce_eager": "execution",
    "generation_config": "",
    "gpu_memory_utilization": "kv_cache.gpu_memory_fraction",
    "kv_cache_dtype": "kv_cache.dtype",
    "kv_cache_dtype_skip_layers": "kv_cache.dtype",
    "logits_processors": "",
    "logprobs_mode": "",
    "max_cpu_loras": "lora",
    "max_logprobs": "",
    "max_lora_rank": "lora.max_rank",
    "max_loras": "lora.max_loras",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "scheduling.max_num_batched_tokens",
    "max_num_seqs": "scheduling.max_num_seqs",
    "model": "model",
    "model_weights": "model",
    "num_gpu_blocks_override": "kv_cache.capacity_tokens",
    "override_generation_config": "",
    "pipeline_parallel_size": "parallel.pipeline",
    "quantization": "quantization",
    "quantization_config": "quantization",
    "reasoning_parser": "",
    "revision": "revision",
    "runner": "task",
    "scheduling_policy": "",
    "seed": "seed",
    "skip_tokenizer_init": "",
    "spec_method": "speculative.method",
    "spec_model": "speculative.model",
    "spec_tokens": "speculative.num_speculative_tokens",
    "speculative_config": "speculative",
    "structured_outputs_config": "",
    "tensor_parallel_size": "parallel.tensor",
    "tokenizer": "tokenizer",
    "tokenizer_revision": "tokenizer_revision",
    "tokens_only": "",
    "trust_remote_code": "trust_remote_code",
    "watermark_config": "",
}


def check_native(native: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that vLLM does not have, and those that a field of ours or this package decides.

    Args:
        native: vLLM's own options, by its names.
        known: names of all its arguments.

    Raises:
        InvalidConfig: names the option, and the field to use instead.
    """
    for name in native:
        if name in OWNED:
            instead = f"use {OWNED[name]}" if OWNED[name] else "anyengine decides it, and its semantics depend on that"
            raise InvalidConfig(f"native.{name}: {instead}", field=f"native.{name}")
        if name not in known:
            raise InvalidConfig(f"native.{name}: vLLM has no engine argument of that name", field=f"native.{name}")


def unsupported(name: str, message: str, supported: Collection[str] = ()) -> UnsupportedParameter:
    """The refusal of a field, its name first."""
    return UnsupportedParameter(f"{name}: {message}", field=name, supported=supported)


def check_device(config: EngineConfig, device: str) -> None:
    """Refuse what this device does not have, and what contradicts itself.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
    """
    if config.device not in {"auto", device}:
        raise unsupported("device", f"the vLLM that is installed here computes on {device} only", {device})
    kv_cache = config.kv_cache
    if kv_cache.gpu_memory_fraction is not None and kv_cache.capacity_tokens is not None:
        raise InvalidConfig(
            "kv_cache.capacity_tokens: it is instead of gpu_memory_fraction; give one of the two",
            field="kv_cache.capacity_tokens",
        )
    for name in ("gpu_memory_fraction", "capacity_tokens"):
        if getattr(kv_cache, name) is not None and "kv_cache_memory_bytes" in config.native:
            raise InvalidConfig(
                f"native.kv_cache_memory_bytes: sets the size of the cache, as does kv_cache.{name}",
                field="native.kv_cache_memory_bytes",
            )
    if device == "cpu":
        _check_cpu(config)
    elif kv_cache.dtype not in {"auto", *versions.kv_cache_dtypes()}:
        raise unsupported(
            "kv_cache.dtype", f"vLLM has no {kv_cache.dtype!r} here", {"auto", *versions.kv_cache_dtypes()}
        )
    wanted = config.parallel.tensor * config.parallel.pipeline * config.parallel.data
    if config.devices is not None and len(config.devices) < wanted:
        raise InvalidConfig(
            f"devices: names {len(config.devices)} devices, and parallel needs {wanted}", field="devices"
        )


def _check_cpu(config: EngineConfig) -> None:
    if config.execution == "graph":
        raise unsupported("execution", "there are no graphs to capture on a CPU", {"auto", "eager"})
    if config.determinism != "none":
        raise unsupported("determinism", "vLLM's batch-invariant kernels are for GPUs", {"none"})
    if config.quantization is not None:
        raise unsupported("quantization", "this package maps it on GPUs only")
    if config.kv_cache.dtype != "auto":
        raise unsupported("kv_cache.dtype", "on a CPU the cache has the model's dtype", {"auto"})
    if config.devices is not None:
        raise unsupported("devices", "a CPU has no devices to choose from")
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if config.kv_cache.gpu_memory_fraction is not None and space:
        raise InvalidConfig(
            f"kv_cache.gpu_memory_fraction: the variable VLLM_CPU_KVCACHE_SPACE={space} sets the size of the cache and "
            "would win; unset it, or leave the field out",
            field="kv_cache.gpu_memory_fraction",
        )


def check_model(model: ModelFiles) -> None:
    """Refuse a checkpoint in whose place vLLM would load another.

    A proposer in the format of ``speculators`` names the model that it is for; vLLM loads that one, with its tokenizer
    and the proposer beside it (``maybe_override_with_speculators``).

    Raises:
        UnsupportedParameter: names the field.
    """
    if "speculators_config" in model.config:
        raise unsupported(
            "model",
            "it is a proposer for speculative decoding (it has speculators_config), in whose place vLLM would load the "
            "model that it is for; load that one, with speculative.model for this",
        )


def check_stored(dtype: str, model: ModelFiles, *, amx: bool) -> None:
    """Refuse a data type that vLLM's kernel for CPUs of the checkpoint's scheme does not compute in.

    The 4-bit kernel (``cpu_gemm_wna16`` of 0.32) takes bfloat16, and the 8-bit one for processors with matrix tiles
    (``int8_scaled_mm_with_quant``) bfloat16 or float16: with float32 the engine's core dies in the first step.

    Args:
        dtype: what vLLM is to compute in: asked for, or the checkpoint's own.
        model: the checkpoint.
        amx: whether the processor has matrix tiles.

    Raises:
        UnsupportedParameter: names the field.
    """
    stored = read_stored(model.path, model.config)
    if dtype != "float32" or stored is None:
        return
    if "int4-w4a16" in stored.schemes:
        kernel, takes = "4-bit kernel on a CPU", {"bfloat16"}
    elif "int8-w8a8" in stored.schemes and amx:
        kernel, takes = "8-bit kernel on a CPU with AMX", {"bfloat16", "float16"}
    else:
        return
    own = own_dtype(model.config)
    whose = ", which the checkpoint is in" if own == dtype else ""
    raise unsupported(
        "dtype",
        f"vLLM's {kernel} does not compute in float32{whose}; give dtype='bfloat16'",
        takes | ({"auto"} if own in {None, *takes} else set()),
    )


def check_embed(config: EngineConfig) -> None:
    """Refuse what belongs to generating only."""
    for name in ("speculative", "lora"):
        if getattr(config, name) is not None:
            raise unsupported(name, "only for task='generate'")
