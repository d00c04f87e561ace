"""What the PyTorch backend makes of the configuration of its cache (``lmdeploy/pytorch/engine/executor/base.py``)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from .executor import DEVICE_FREE
from .facts import limit

__all__ = ["CacheConfig", "make_cache_config"]

logger = logging.getLogger("lmdeploy")

#: Heads from here on have blocks of at most so many tokens.
_LARGE_HEAD, _ITS_BLOCK = 512, 32
#: Fewer blocks than these halve the tokens of a step; fewer than those are too few for anything.
_ENOUGH, _TOO_FEW = 16, 2


@dataclass
class CacheConfig:
    """``CacheConfig``, as far as it is read."""

    block_size: int
    num_gpu_blocks: int
    enable_prefix_caching: bool
    max_prefill_token_num: int
    window_size: int
    num_reserved_gpu_blocks: int

    def longest(self, session_len: int) -> int:
        """Tokens of a context: a block less than there is room for; a window leaves room for any."""
        room = (self.num_gpu_blocks - self.num_reserved_gpu_blocks) * self.block_size
        if 0 < self.window_size <= room:
            room = (1 << 63) - 1
        return min(room - self.block_size, session_len)


def make_cache_config(config: Any, facts: dict[str, Any]) -> CacheConfig:
    """What is asked for, changed as there is no memory or no kernel for it, with warnings.

    Args:
        config: the engine's.
        facts: the checkpoint's ``config.json``.
    """
    made = CacheConfig(
        block_size=config.block_size,
        num_gpu_blocks=config.num_gpu_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        max_prefill_token_num=config.max_prefill_token_num,
        window_size=(facts.get("sliding_window") or -1) if facts.get("use_sliding_window", True) else -1,
        num_reserved_gpu_blocks=limit("reserved_blocks_pytorch"),
    )
    head = facts.get("head_dim") or facts["hidden_size"] // facts["num_attention_heads"]
    if head >= _LARGE_HEAD and made.block_size > _ITS_BLOCK:
        made.block_size = _ITS_BLOCK
        logger.warning("Update `block_size=%d` for large `head_dim=%d`.", made.block_size, head)
    if made.enable_prefix_caching and made.window_size > 0:
        logger.warning("Sliding window prefix caching is not supported.")
        made.enable_prefix_caching = False
    block = 2 * facts["num_hidden_layers"] * facts["num_key_value_heads"] * head * 4 * made.block_size
    tokens = made.max_prefill_token_num
    while tokens > 0:
        runtime = (tokens + config.max_batch_size * 2) * facts["vocab_size"] * 2
        blocks = int((DEVICE_FREE - runtime) * config.cache_max_entry_count) // block
        if blocks <= _TOO_FEW:
            raise RuntimeError("No enough gpu memory for kv cache.")
        if blocks >= _ENOUGH:
            break
        tokens //= 2
    if tokens == 0:
        raise RuntimeError("No enough gpu memory for runtime.")
    if tokens != made.max_prefill_token_num:
        logger.warning("No enough memory. Update max_prefill_token_num=%d", tokens)
        made.max_prefill_token_num = tokens
    return made
