"""Attention over the paged cache, in tiles of one fixed size."""

import numpy as np

from .ops import FloatArray, aligned, round_up
from .workers import run

__all__ = ["TILE", "attend"]

TILE = 64
"""Positions in a tile. Tiles of 16 take about twice as long (more and smaller products), of 128 no less."""
_QUERIES = 32
"""Rows of queries that are worked on together: they skip the tiles that none of them sees."""


def attend(
    queries: FloatArray, keys: FloatArray, values: FloatArray, start: int, window: int | None, out: FloatArray
) -> None:
    """Write ``softmax(q K / sqrt(head_dim)) V`` for consecutive positions of a sequence, each over those up to itself.

    Args:
        queries: [rows, kv heads, group, head_dim], scaled; row i stands at position `start` + i.
        keys: [kv heads, tiles, TILE, head_dim] of the sequence from position 0 on.
        values: as `keys`; finite also where there is no position.
        start: position of the first row.
        window: how many positions a row sees, its own included; None for all.
        out: as `queries`.

    "Attention Is All You Need", https://arxiv.org/abs/1706.03762, equation 1; grouped as in
    https://arxiv.org/abs/2305.13245. Scores, sums of exponentials and weighted values are products of a fixed shape
    for each row, head and tile, and a row adds its tiles from first to last. A tile that a row does not see adds exact
    zeros, so which tiles other rows of the step ask for does not change it.
    """

    def work(first: int, last: int) -> None:
        for row in range(first * _QUERIES, min(last * _QUERIES, len(queries)), _QUERIES):
            _attend(queries[row : row + _QUERIES], keys, values, start + row, window, out[row : row + _QUERIES])

    run(work, -(-len(queries) // _QUERIES), split=len(queries) > _QUERIES)


def _attend(
    queries: FloatArray, keys: FloatArray, values: FloatArray, start: int, window: int | None, out: FloatArray
) -> None:
    rows, kv_heads, group, head_dim = queries.shape
    first = 0 if window is None else max(0, start - window + 1) // TILE
    last = (start + rows - 1) // TILE + 1
    keys, values = keys[None, :, None, first:last], values[None, :, None, first:last]
    scores = aligned(rows, kv_heads, group, last - first, TILE)
    np.matvec(keys, queries[:, :, :, None], out=scores)
    _mask(scores.reshape(rows, kv_heads * group, -1), start, first * TILE, window)
    scores -= scores.max((-1, -2), keepdims=True)
    np.exp(scores, out=scores)
    sums = np.vecdot(scores, np.ones(TILE, np.float32))[..., None]
    parts = aligned(rows, kv_heads, group, last - first, round_up(head_dim))[..., :head_dim]
    np.vecmat(scores, values, out=parts)
    total, weighted = sums[..., 0, :], parts[..., 0, :]
    for tile in range(1, last - first):
        total += sums[..., tile, :]
        weighted += parts[..., tile, :]
    # Plus zero: a sum of nothing but negative zeros has another sign once a tile of zeros is added.
    np.divide(weighted + np.float32(0), total, out=out)


def _mask(scores: FloatArray, start: int, origin: int, window: int | None) -> None:
    """Set to minus infinity what a row must not see: [rows, heads, positions], from `start` and from `origin` on."""
    rows, _, columns = scores.shape
    if rows == 1:
        scores[..., start - origin + 1 :] = -np.inf
        if window is not None:
            scores[..., : max(0, start - window + 1 - origin)] = -np.inf
        return
    distance = np.arange(start, start + rows)[:, None] - np.arange(origin, origin + columns)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    np.copyto(scores, -np.inf, where=hidden[:, None])
