"""What vLLM made of what was asked for: some of it it overrides, with no more than a line in its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.errors import EngineStartupError

from anyengine_vllm.checks import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.config import EngineConfig

__all__ = ["capacity_tokens", "check_taken", "dtype_of", "max_num_seqs"]


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
        # Also where it was not asked for: `determinism` may need it.
        "scheduling.max_num_batched_tokens": (sent.get("max_num_batched_tokens"), scheduler.max_num_batched_tokens),
        "scheduling.max_num_seqs": (config.scheduling.max_num_seqs, max_num_seqs(config, vllm_config)),
    }
    for field, (wanted, given) in pairs.items():
        if wanted is not None and wanted != given:
            raise unsupported(field, f"of {wanted} vLLM makes {given} for this model on this device", {str(given)})


def capacity_tokens(config: EngineConfig, vllm_config: Any) -> int:
    """Tokens that fit into the cache, of all copies of the model together.

    Where layers are of several kinds (full and sliding attention, say), each kind takes blocks of its own for the same
    tokens, all from one pool. vLLM says how many tokens each copy holds in contexts of full length, and so how many
    blocks such a context takes.

    Raises:
        UnsupportedParameter, EngineStartupError: another capacity was asked for.
    """
    cache, copies = vllm_config.cache_config, config.parallel.data
    size, blocks = int(cache.block_size), int(cache.num_gpu_blocks or 0)
    context = int(vllm_config.model_config.max_model_len)
    one_kind = every_kind = -(-context // size)
    said = getattr(cache, "kv_cache_size_tokens", None)
    if isinstance(said, int) and said > 0:
        every_kind = max(one_kind, round(blocks / copies * context / said))
    # In each engine core vLLM keeps one block back.
    capacity = max(blocks - copies, 0) * size * one_kind // every_kind
    wanted = config.kv_cache.capacity_tokens
    if wanted is None or wanted <= capacity < wanted + size * copies:
        return capacity
    if every_kind > one_kind:
        raise unsupported(
            "kv_cache.capacity_tokens",
            f"vLLM is told a number of blocks, and the layers of this model take {every_kind} for a context where one "
            f"kind of them takes {one_kind}: {capacity} tokens fit, not {wanted}; use kv_cache.gpu_memory_fraction",
        )
    raise EngineStartupError(
        f"kv_cache.capacity_tokens: vLLM made room for {capacity} tokens (blocks of {size}) where {wanted} were asked "
        f"for; give kv_cache.block_size={size} as well"
    )
