"""From a row of logits to a token: steps 2 to 10 of "The draw" in ``docs/semantics.md``, in float64."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from anyengine.errors import InvalidRequest, PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyengine.backend import TokenRequest
    from numpy.typing import NDArray

__all__ = ["Sampler"]

_LARGEST = float(np.finfo(np.float64).max)


class Sampler:
    """Chooses the tokens of one request, in turn, with a random stream that nothing else draws from.

    Args:
        request: its sampling parameters, terminators and bans.
        vocab_size: length of a row of logits.
        seed: of the random stream; nothing is drawn from it with temperature 0.
    """

    def __init__(self, request: TokenRequest, vocab_size: int, seed: int) -> None:
        self._request = request
        self._params = request.sampling
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._in_prompt = set(request.prompt_token_ids)
        self._counts: Counter[int] = Counter()
        # A model may name an end-of-sequence token that its vocabulary lacks: that one is never drawn.
        self._terminators = _ids(token for token in request.terminators if token < vocab_size)
        allowed = self._params.allowed_token_ids
        self._forbidden = None if allowed is None else np.setdiff1d(np.arange(vocab_size), _ids(allowed))
        self._bias = self._params.logit_bias or {}

    def choose(self, logits: NDArray[np.float32], generated: Sequence[int], mask: NDArray[np.bool_] | None) -> int:
        """The next token.

        Args:
            logits: float32 [vocab], the model's own; not changed.
            generated: the completion so far.
            mask: bool [vocab], what a structure allows, or None.

        Raises:
            InvalidRequest: nothing is left to draw.
            PluginError: the model's logits are not numbers.
        """
        token = self._choose(self._shape(logits, generated, mask))
        self._counts[token] += 1
        return token

    def _shape(
        self, logits: NDArray[np.float32], generated: Sequence[int], mask: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """Steps 2 to 5: penalties, bias and bans; what may not be drawn is minus infinity."""
        if np.isnan(logits).any():
            raise PluginError("the model computed logits that are not numbers; are its weights damaged?")
        z = logits.astype(np.float64)
        with np.errstate(over="ignore"):
            self._penalise(z)
        # A penalty or a bias makes a token unlikely or likely, however large it is; only a ban rules one out.
        np.clip(z, -_LARGEST, _LARGEST, out=z)
        self._ban(z, generated, mask)
        if z.max() == -np.inf:
            raise InvalidRequest(
                "no token is left that allowed_token_ids, bad_words, min_tokens and the structure allow, "
                f"after {len(generated)} tokens",
                field="sampling",
            )
        return z

    def _penalise(self, z: NDArray[np.float64]) -> None:
        params = self._params
        if params.repetition_penalty != 1:
            # Keskar et al. 2019 (CTRL), section 4.1; a negative logit is multiplied, so that it falls as well.
            seen = _ids(self._in_prompt | self._counts.keys())
            z[seen] = np.where(z[seen] > 0, z[seen] / params.repetition_penalty, z[seen] * params.repetition_penalty)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            # As in OpenAI's API: of the completion only.
            token_ids = _ids(self._counts)
            counts = np.fromiter(self._counts.values(), np.float64)
            z[token_ids] -= params.presence_penalty + params.frequency_penalty * counts
        for token, bias in self._bias.items():
            z[token] += bias

    def _ban(self, z: NDArray[np.float64], generated: Sequence[int], mask: NDArray[np.bool_] | None) -> None:
        if self._forbidden is not None:
            z[self._forbidden] = -np.inf
        for *head, last in self._request.bad_word_ids:
            # A word that the prompt began may be ended: only the completion is looked at.
            if len(head) <= len(generated) and list(generated[len(generated) - len(head) :]) == head:
                z[last] = -np.inf
        if len(generated) < self._request.min_tokens:
            z[self._terminators] = -np.inf
        if mask is not None:
            z[~mask] = -np.inf

    def _choose(self, z: NDArray[np.float64]) -> int:
        """Steps 6 to 10: temperature, truncation, draw."""
        params = self._params
        if params.greedy:
            return int(z.argmax())  # the first, so the lowest id, of equals
        token_ids = np.flatnonzero(z > -np.inf)
        if params.top_k or params.top_p < 1:
            token_ids = token_ids[np.argsort(-z[token_ids], kind="stable")]  # stable: lower ids first among equals
        if params.top_k:
            token_ids = token_ids[: params.top_k]
        weights = _softmax(z[token_ids], params.temperature)
        if params.top_p < 1:
            # The token with which the sum reaches top_p is kept (Holtzman et al. 2020, section 3.1).
            kept = int(np.searchsorted(np.cumsum(weights), params.top_p)) + 1
            token_ids, weights = token_ids[:kept], weights[:kept]
        if params.min_p:
            # Nguyen et al. 2024, arXiv:2407.01082, section 3.
            likely = weights >= params.min_p * weights.max()
            token_ids, weights = token_ids[likely], weights[likely]
        # Inversion: a uniform number falls into a token's share of the sum. It is below 1, but its product with the sum
        # may be rounded up to the sum itself.
        sums = np.cumsum(weights)
        total = float(sums[-1])
        at = int(np.searchsorted(sums, self._random.random() * total, side="right"))
        last = int(np.searchsorted(sums, total))
        return int(token_ids[min(at, last)])


def _softmax(z: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities; the largest logit is taken off before the division, lest a tiny temperature makes infinities."""
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (z - z.max()) / temperature
    weights = np.exp(scaled)
    return weights / weights.sum()


def _ids(token_ids: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(token_ids, np.int64)
