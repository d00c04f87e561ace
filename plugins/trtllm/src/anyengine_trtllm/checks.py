"""What a configuration may not ask of TensorRT-LLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.errors import InvalidConfig, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Collection

    from anyengine.config import EngineConfig

    from anyengine_trtllm.options import Options

__all__ = ["KV_CACHE_DTYPES", "check_config", "unsupported"]

#: Element types of the cache, beside ``auto``; the backend that runs built engines has ``auto`` only.
KV_CACHE_DTYPES = frozenset({"fp8", "nvfp4"})


def unsupported(name: str, message: str, supported: Collection[str] = ()) -> UnsupportedParameter:
    """The refusal of a field, its name first."""
    return UnsupportedParameter(f"{name}: {message}", field=name, supported=supported)


def check_config(config: EngineConfig, options: Options) -> None:
    """Refuse what the backend does not have, and what contradicts itself.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
    """
    kv_cache = config.kv_cache
    dtypes = frozenset[str]() if options.tensorrt else KV_CACHE_DTYPES
    if kv_cache.dtype not in {"auto", *dtypes}:
        raise unsupported("kv_cache.dtype", f"there is no {kv_cache.dtype!r} on this backend", {"auto", *dtypes})
    if kv_cache.gpu_memory_fraction is not None and kv_cache.capacity_tokens is not None:
        raise InvalidConfig(
            "kv_cache.capacity_tokens: it is instead of gpu_memory_fraction; give one of the two",
            field="kv_cache.capacity_tokens",
        )
    size = kv_cache.block_size
    if size is not None and size & (size - 1):
        raise unsupported("kv_cache.block_size", f"a power of 2, not {size}")
    if options.tensorrt:
        _check_tensorrt(config)
    wanted = config.parallel.tensor * config.parallel.pipeline
    if config.devices is not None and len(config.devices) < wanted:
        raise InvalidConfig(
            f"devices: names {len(config.devices)} devices, and parallel needs {wanted}", field="devices"
        )
    _check_speculative(config, options)


def _check_tensorrt(config: EngineConfig) -> None:
    if config.execution != "auto":
        raise unsupported("execution", "a built engine runs as it was built", {"auto"})
    if config.kv_cache.block_size is not None:
        raise unsupported("kv_cache.block_size", "this package maps it on the PyTorch backend only")


def _check_speculative(config: EngineConfig, options: Options) -> None:
    wanted = config.speculative
    if wanted is None:
        return
    if (wanted.method == "eagle") != options.tensorrt:
        # EAGLE's first two versions run in built engines only, everything since then in PyTorch only.
        backend = "tensorrt" if wanted.method == "eagle" else "pytorch"
        raise unsupported("speculative.method", f"{wanted.method!r} needs native.backend {backend!r}")
    if "ngram_min" in set(wanted.changed()):
        raise unsupported("speculative.ngram_min", "TensorRT-LLM has no shortest match to look up")
    if wanted.method == "mtp" and wanted.model is not None:
        raise InvalidConfig(
            "speculative.model: the layers of method 'mtp' are part of the model itself", field="speculative.model"
        )
    if wanted.method in {"draft_model", "eagle", "eagle3"} and wanted.model is None:
        raise InvalidConfig(
            f"speculative.model: method {wanted.method!r} needs the proposer's checkpoint", field="speculative.model"
        )
    if config.lora is not None:
        raise unsupported("lora", "with speculative it is nowhere documented what adapters do to drafts")
