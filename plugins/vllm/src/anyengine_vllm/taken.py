"""What vLLM made of what was asked for: some of it it overrides, with no more than a line in its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine_vllm.checks import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.config import EngineConfig

__all__ = ["check_taken", "dtype_of", "max_num_seqs"]


def dtype_of(vllm_config: Any) -> str:
    """What the model is computed in, by its name."""
    return str(vllm_config.model_config.dtype).removeprefix("torch.")


def max_num_seqs(config: EngineConfig, vllm_config: Any) -> int:
    """Sequences that all copies of the model together run at once; vLLM counts those of each."""
    return int(vllm_config.scheduler_config.max_num_seqs) * config.parallel.data


def check_taken(config: EngineConfig, sent: Mapping[str, Any], vllm_config: Any) -> None:
    """Refuse what vLLM would compute otherwise than it was told.

    Args:
        config: what was asked for.
        sent: the arguments that were made of it.
        vllm_config: what vLLM made of them: of some before it loads the model, of the cache's blocks when it has.

    Raises:
        UnsupportedParameter: names the field, and what vLLM has instead.
    """
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    pairs: dict[str, tuple[Any, Any]] = {
        "dtype": (None if sent["dtype"] == "auto" else sent["dtype"], dtype_of(vllm_config)),
        "kv_cache.block_size": (config.kv_cache.block_size, cache.block_size),
        "kv_cache.prefix_caching": (config.kv_cache.prefix_caching, cache.enable_prefix_caching),
        "scheduling.chunked_prefill": (config.scheduling.chunked_prefill, scheduler.enable_chunked_prefill),
        "scheduling.max_num_batched_tokens": (
            config.scheduling.max_num_batched_tokens,
            scheduler.max_num_batched_tokens,
        ),
        "scheduling.max_num_seqs": (config.scheduling.max_num_seqs, max_num_seqs(config, vllm_config)),
    }
    for field, (wanted, given) in pairs.items():
        if wanted is not None and wanted != given:
            raise unsupported(field, f"of {wanted} vLLM makes {given} for this model on this device", {str(given)})
