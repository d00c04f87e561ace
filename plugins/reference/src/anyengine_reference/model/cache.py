"""The paged store of keys and values."""

import math
from collections.abc import Sequence

import numpy as np

from .config import ModelConfig
from .ops import FloatArray, IntArray, aligned, round_up

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of all sequences in blocks, each float32 [layers, kv heads, blocks, block_size, head_dim].

    Paged attention, https://arxiv.org/abs/2309.06180. A sequence's position p is in its block table's entry
    ``p // block_size``. There is one block more than `num_blocks`, always zero: it fills up the last tile of attention.
    """

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int = 16) -> None:
        """Make room for `num_blocks` blocks (memory is taken as they are written).

        Raises:
            ValueError: a size below 1.
        """
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} positions: both must be at least 1.")
        shape = (config.num_layers, config.num_kv_heads, num_blocks + 1, block_size, config.head_dim)
        self.keys: FloatArray = np.zeros(shape, np.float32)
        self.values: FloatArray = np.zeros(shape, np.float32)
        self.num_blocks = num_blocks
        self.block_size = block_size

    @property
    def nbytes(self) -> int:
        """Bytes of address space that keys and values have together."""
        return self.keys.nbytes + self.values.nbytes

    def copy_block(self, source: int, target: int) -> None:
        """Copy a physical block over another, in all layers: for a sequence that writes where another still reads."""
        self.keys[:, :, target] = self.keys[:, :, source]
        self.values[:, :, target] = self.values[:, :, source]

    def clear_after(self, block: int, used: int) -> None:
        """Zero a block from its position `used` on.

        Attention gives positions that are not there the weight 0, but 0 times what another sequence left behind is 0
        only when that is finite.
        """
        self.keys[:, :, block, used:] = 0
        self.values[:, :, block, used:] = 0

    def write(self, layer: int, blocks: IntArray, offsets: IntArray, keys: FloatArray, values: FloatArray) -> None:
        """Store keys and values [rows, kv heads, head_dim] at (block, offset), int64 [rows] each."""
        self.keys[layer][:, blocks, offsets] = keys.transpose(1, 0, 2)
        self.values[layer][:, blocks, offsets] = values.transpose(1, 0, 2)

    def gather(self, layer: int, table: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return copies of the keys and values of some blocks, [kv heads, blocks, block_size, head_dim] each."""
        shape = (self.keys.shape[1], len(table), *self.keys.shape[3:])
        keys = np.take(self.keys[layer], table, 1, out=aligned(*shape), mode="clip")
        values = np.take(self.values[layer], table, 1, out=aligned(*shape), mode="clip")
        return keys, values

    def padded_table(self, table: Sequence[int], length: int, tile: int) -> IntArray:
        """Return the blocks of the first `length` positions, and zero blocks up to a whole number of tiles."""
        used = -(-length // self.block_size)
        whole = round_up(used, math.lcm(self.block_size, tile) // self.block_size)
        padded = np.full(whole, self.num_blocks, np.int64)
        padded[:used] = table[:used]
        return padded
