"""From rows of logits to log-probabilities, for engines that return the former.

Works on any tensor with torch's methods; torch itself is not imported.
"""

from __future__ import annotations

from typing import Any

from anyengine.outputs import TokenLogprobs

__all__ = ["row_logprobs"]

#: Rows that are worked on at once; bounds the memory.
_ROWS = 64


def row_logprobs(rows: Any, token_ids: list[int], count: int) -> list[TokenLogprobs]:
    """Log-softmax of rows of logits, at the chosen tokens and the ``count`` most likely ones.

    Takes milliseconds a row with many alternatives: not for an event loop.

    Args:
        rows: tensor [n, vocab] of the model's own logits.
        token_ids: length n, the token that came of each row.
        count: alternatives.
    """
    entries: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _ROWS):
        ids = token_ids[start : start + _ROWS]
        values = rows[start : start + len(ids)].float().log_softmax(-1)
        chosen = values[list(range(len(ids))), ids].tolist()
        likely: list[tuple[list[float], list[int]]] = [([], [])] * len(ids)
        if count:
            top = values.topk(count, -1)
            likely = list(zip(top[0].tolist(), top[1].tolist(), strict=True))
        entries += [_entry(token, own, *others) for token, own, others in zip(ids, chosen, likely, strict=True)]
    return entries


def _entry(token: int, own: float, values: list[float], ids: list[int]) -> TokenLogprobs:
    # Rounding may leave a certainty a hair above 0. Of equal values the lower id comes first.
    ranked = sorted(zip(values, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
    top = {each: min(value, 0.0) for value, each in ranked}
    top.setdefault(token, min(own, 0.0))
    return TokenLogprobs(token, top[token], top)
