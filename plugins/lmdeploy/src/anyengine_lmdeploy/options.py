"""``EngineConfig.native``: which of LMDeploy's two engines, and its own options. Pure, no LMDeploy.

Beside fields of ``TurbomindEngineConfig`` or ``PytorchEngineConfig`` there is one name of ours: ``backend``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from anyengine.config import EngineConfig

__all__ = ["OWNED", "BackendName", "Options", "check_arguments", "needs_pytorch", "parse_options"]

BackendName = Literal["turbomind", "pytorch"]

#: Fields of LMDeploy's configurations that are decided by a field of ours, or by this package: the field to use, or "".
OWNED: Mapping[str, str] = {
    "adapters": "lora",
    "block_size": "kv_cache.block_size",
    "cache_block_seq_len": "kv_cache.block_size",
    "cache_max_entry_count": "kv_cache.gpu_memory_fraction or kv_cache.capacity_tokens",
    "device_num": "parallel",
    "device_type": "device",
    "devices": "devices",
    "dist_init_addr": "",
    "dllm_block_length": "",
    "dllm_confidence_threshold": "",
    "dllm_denoising_steps": "",
    "dllm_unmasking_strategy": "",
    "download_dir": "",
    "dp": "parallel.data",
    "dp_rank": "",
    "dtype": "dtype",
    "eager_mode": "execution",
    "empty_init": "",
    "enable_metrics": "",
    "enable_mp_engine": "",
    "enable_prefix_caching": "kv_cache.prefix_caching",
    "ep": "parallel.expert",
    "kv_transfer_config": "",
    "language_model_only": "",
    "logprobs_mode": "",
    "max_batch_size": "scheduling.max_num_seqs",
    "max_prefill_token_num": "scheduling.max_num_batched_tokens",
    "migration_backend": "",
    "model_format": "quantization",
    "mp_engine_backend": "",
    "nnodes": "",
    "node_rank": "",
    "num_gpu_blocks": "kv_cache.capacity_tokens",
    "quant_policy": "kv_cache.dtype",
    "revision": "revision",
    "role": "",
    "session_len": "max_model_len",
    "thread_safe": "",
    "tp": "parallel.tensor",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``native`` says.

    Attributes:
        backend: None leaves the choice to what the model and the configuration need.
        arguments: further fields of the backend's configuration.
    """

    backend: BackendName | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


def parse_options(config: EngineConfig) -> Options:
    """Take ``native`` apart.

    Raises:
        InvalidConfig: names the option, and the field to use instead.
    """
    native = dict(config.native)
    backend = native.pop("backend", None)
    if backend not in {None, "turbomind", "pytorch"}:
        raise _invalid("backend", f"turbomind or pytorch, not {backend!r}")
    for name in native:
        if name in OWNED:
            raise _invalid(name, f"use {OWNED[name]}" if OWNED[name] else "anyengine's semantics depend on it")
    return Options(backend=backend, arguments=native)


def needs_pytorch(config: EngineConfig) -> str | None:
    """The field for which only the engine in PyTorch will do, None if either has it."""
    asked = {
        "speculative": config.speculative is not None,
        "lora": config.lora is not None,
        "quantization": config.quantization is not None,
        "execution": config.execution != "auto",
        "kv_cache.dtype": config.kv_cache.dtype.startswith("fp8"),
        # TurboMind takes a share of memory only, and does not say how many tokens that came to.
        "kv_cache.capacity_tokens": config.kv_cache.capacity_tokens is not None,
    }
    return next((name for name, wanted in asked.items() if wanted), None)


def check_arguments(arguments: Mapping[str, Any], known: Collection[str], backend: BackendName) -> None:
    """Refuse fields that the backend's configuration does not have.

    Raises:
        InvalidConfig: names the option.
    """
    for name in arguments:
        if name not in known:
            raise _invalid(name, f"LMDeploy's configuration of the {backend} backend has no field of that name")


def _invalid(name: str, message: str) -> InvalidConfig:
    return InvalidConfig(f"native.{name}: {message}", field=f"native.{name}")
