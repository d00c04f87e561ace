"""Log-probabilities of the model's own distribution, before any sampling parameter: step 1 of "The draw"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anyengine.outputs import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["entries"]


def entries(logits: NDArray[np.float32], token_ids: Iterable[int], top: int) -> list[TokenLogprobs]:
    """One entry a row, computed in float64.

    Args:
        logits: float32 [rows, vocab].
        token_ids: the token that was chosen after each row; always among its alternatives.
        top: alternatives a row; where several are equal at the edge, lower ids stay.
    """
    rows = _log_softmax(logits)
    return [_entry(row, token, top) for row, token in zip(rows, token_ids, strict=True)]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """``z - log(sum(exp(z)))`` of each row, with the largest logit taken off first so that nothing overflows."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def _entry(row: NDArray[np.float64], token_id: int, top: int) -> TokenLogprobs:
    best = {token: float(row[token]) for token in _most_likely(row, min(top, len(row)))}
    chosen = float(row[token_id])
    return TokenLogprobs(token_id, chosen, best | {token_id: chosen})


def _most_likely(row: NDArray[np.float64], count: int) -> list[int]:
    """Ids of the largest values, largest first."""
    if count == 0:
        return []
    # Only what can be among them is sorted: a vocabulary has a hundred thousand tokens.
    least = np.partition(row, -count)[-count]
    found = np.flatnonzero(row >= least)
    return found[np.lexsort((found, -row[found]))][:count].tolist()
