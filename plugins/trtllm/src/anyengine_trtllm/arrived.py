"""What came up, held against what was asked for: TensorRT-LLM makes caches smaller with a line in its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig, OutOfMemory

from anyengine_trtllm.checks import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.config import EngineConfig

__all__ = ["check_cache"]


def check_cache(config: EngineConfig, length: int, cache: Mapping[str, Any]) -> int:
    """Hold the cache against the fields that ask for it.

    Args:
        config: what was asked for.
        length: of the context, as it was passed.
        cache: ``kvCacheStats`` of an iteration.

    Returns:
        The context that the cache holds: ``length``, or less where none was asked for.

    Raises:
        UnsupportedParameter: the model runs with blocks of another size.
        OutOfMemory: there was no room for as many tokens.
        InvalidConfig: a context does not fit. TensorRT-LLM would cut every sequence there (``max_seq_len``).
    """
    wanted, size = config.kv_cache, int(cache["tokensPerBlock"])
    capacity = int(cache["maxNumBlocks"]) * size
    if wanted.block_size not in {None, size}:
        raise unsupported(
            "kv_cache.block_size", f"TensorRT-LLM runs this model with blocks of {size} tokens here", {str(size)}
        )
    if wanted.capacity_tokens is not None and capacity < wanted.capacity_tokens:
        raise OutOfMemory(
            f"kv_cache.capacity_tokens: there was room for {capacity} tokens, not for {wanted.capacity_tokens}",
            field="kv_cache.capacity_tokens",
        )
    if capacity >= length:
        return length
    if config.max_model_len is None and config.speculative is None:
        return capacity
    raise InvalidConfig(
        f"max_model_len: the cache holds a context of {capacity} tokens here, not of {length}; ask for that, or give "
        "the cache more (kv_cache)",
        field="max_model_len",
    )
