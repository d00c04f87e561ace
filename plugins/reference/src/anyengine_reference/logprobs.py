"""Log-probabilities of the model's own distribution, before any sampling parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anyengine.outputs import TokenLogprobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["entry"]


def entry(logits: NDArray[np.float32], token_id: int, top: int) -> TokenLogprobs:
    """Log-softmax of one row, at the chosen token and at the ``top`` most likely ones.

    Args:
        logits: float32 [vocab].
        token_id: the chosen token; always among the result.
        top: alternatives; ties go to the lower id.
    """
    values = logits.astype(np.float64)
    highest = values.max()
    values -= highest + np.log(np.exp(values - highest).sum())
    best: list[int] = []
    if top:
        count = min(top, len(values))
        edge = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= edge)
        best = candidates[np.argsort(-values[candidates], kind="stable")][:count].tolist()
    if token_id not in best:
        best.append(token_id)
    return TokenLogprobs(token_id, float(values[token_id]), {token: float(values[token]) for token in best})
