"""Speculative decoding: proposing tokens cheaply, and keeping exactly the right ones.

Verification is the rejection sampling of Leviathan et al. 2023 (arXiv:2211.17192, algorithm 1) and Chen et al. 2023
(arXiv:2302.01318): a token drawn from q is kept with probability min(1, p / q), else one is drawn from the positive
part of p - q. What comes out is distributed as p, whatever q is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from anyengine_reference.model import Segment
from anyengine_reference.sampling import DRAFT, REDRAW, VERIFY, Distribution, truncate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyengine_reference.model import KVCache, Model
    from anyengine_reference.sampling import Sampler
    from anyengine_reference.sequence import Sequence

__all__ = ["DraftModel", "NGram", "Proposer", "verify"]


class Proposer(Protocol):
    """Proposes what may come next. Proposals depend on the sequence alone, never on the batch."""

    def propose(self, sequence: Sequence, count: int) -> tuple[list[int], list[Distribution] | None]:
        """At most ``count`` tokens, and the distributions they were drawn from; None if they were certain."""
        ...

    def follow(self, segments: list[Segment]) -> None:
        """Compute for oneself what the model has just computed."""
        ...


class NGram:
    """Prompt lookup (Saxena 2023): the last tokens stood somewhere before; propose what followed them there."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._shortest = shortest
        self._longest = longest

    def propose(self, sequence: Sequence, count: int) -> tuple[list[int], list[Distribution] | None]:
        tokens = np.array(sequence.tokens, np.int64)
        for length in range(min(self._longest, len(tokens) - 1), self._shortest - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], length)
            found = np.flatnonzero((windows == tokens[-length:]).all(axis=1))
            if len(found):
                after = int(found[-1]) + length  # the most recent occurrence
                return tokens[after : after + count].tolist(), None
        return [], None

    def follow(self, segments: list[Segment]) -> None:
        """Nothing to compute: the text itself is all that is looked up."""


class DraftModel:
    """A smaller model with the same tokenizer. Its cache has the main model's blocks, so both always hold the same."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    def propose(self, sequence: Sequence, count: int) -> tuple[list[int], list[Distribution] | None]:
        sampler, params = sequence.sampler, sequence.request.sampling
        proposed: list[int] = []
        distributions: list[Distribution] = []
        last, position = sequence.tokens[-1], len(sequence.tokens) - 1
        for _ in range(count):
            segment = Segment([last], position, sequence.blocks)
            logits = self._model.logits(self._model.forward([segment], self._cache)[0])[0].astype(np.float64)
            position += 1
            if sampler.greedy:
                last = int(np.argmax(logits))
            else:
                drawn_from = truncate(logits, params.temperature, params.top_k, params.top_p, params.min_p)
                last = drawn_from.draw(sampler.uniform(position, DRAFT))
                distributions.append(drawn_from)
            proposed.append(last)
        return proposed, None if sampler.greedy else distributions

    def follow(self, segments: list[Segment]) -> None:
        if segments:
            self._model.forward(segments, self._cache)


def verify(
    sampler: Sampler, shaped: NDArray[np.float64], position: int, proposed: int, drawn_from: Distribution | None
) -> tuple[int, bool]:
    """Decide on one proposed token.

    Args:
        sampler: of the request.
        shaped: float64 [vocab], the model's logits there after penalties and bans.
        position: of the token in the sequence.
        proposed: the token.
        drawn_from: what it was drawn from; None: it was certain.

    Returns:
        The token at this position, and whether it is the proposed one.
    """
    if sampler.greedy:
        best = int(np.argmax(shaped))
        return best, best == proposed
    target = sampler.distribution(shaped)
    ratio = target.of(proposed) / (1.0 if drawn_from is None else drawn_from.of(proposed))
    if sampler.uniform(position, VERIFY) < ratio:
        return proposed, True
    rest = np.zeros(len(shaped))
    rest[target.token_ids] = target.probabilities
    if drawn_from is not None:
        rest[drawn_from.token_ids] -= drawn_from.probabilities
        np.maximum(rest, 0.0, out=rest)
    rest[proposed] = 0.0
    if not rest.sum() > 0:  # rounding: p and q are equal, and the draw fell into the gap
        return proposed, True
    return Distribution(np.arange(len(rest)), rest / rest.sum()).draw(sampler.uniform(position, REDRAW)), False
