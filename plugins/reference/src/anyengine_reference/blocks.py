"""Which sequence holds which block of the key-value cache, and which blocks can be reused.

Paging as in vLLM's paper (Kwon et al. 2023, arXiv:2309.06180); prefix reuse by a chain of hashes: a full block is known
by what it holds and by everything before it.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BlockPool", "chain"]


def chain(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of a full block: 16 bytes of BLAKE2b over the key of the block before it and its own tokens.

    Args:
        parent: key of the block before; for the first block a digest of the cache salt.
        token_ids: the block's tokens.
    """
    return blake2b(parent + b"".join(token.to_bytes(4, "little") for token in token_ids), digest_size=16).digest()


class BlockPool:
    """Hands out blocks by number and counts their holders.

    A block that nobody holds stays findable by its key until its place is needed, least recently used first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # nobody holds them, oldest first
        self._holders: dict[int, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return len(self._holders)

    @property
    def free(self) -> int:
        """Blocks that could be handed out now."""
        return self.num_blocks - self.used

    def allocate(self) -> int:
        """A block for writing. The caller has seen that one is ``free``."""
        if self._unused:
            block = self._unused.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._holders[block] = 1
        return block

    def find(self, key: bytes) -> int | None:
        """The block with that key, held once more; None if there is none."""
        block = self._block_of.get(key)
        if block is None:
            return None
        self._cached.pop(block, None)
        self._holders[block] = self._holders.get(block, 0) + 1
        return block

    def publish(self, block: int, key: bytes) -> None:
        """Make a full, computed block findable; the first block with a key keeps it."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Hold blocks once less. Given last block first, a chain is forgotten from its end."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._unused.append(block)
