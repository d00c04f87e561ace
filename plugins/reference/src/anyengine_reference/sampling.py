"""From logits to a token: penalties, bans, temperature, truncation, draw.

Probabilities are float64. The order is that of :class:`anyengine.SamplingParams`. Every draw of a request comes from a
counter-based generator (Philox, Salmon et al. 2011) keyed by the request's seed, with position and purpose as the
counter: a draw depends on nothing else, neither on the batch nor on what was drawn before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anyengine.errors import InvalidRequest, PluginError

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from numpy.typing import NDArray

__all__ = ["DRAFT", "DRAW", "REDRAW", "VERIFY", "Distribution", "Sampler", "truncate"]

#: What a uniform number is for; each pair of position and purpose is used at most once in what a request gives.
DRAW, VERIFY, REDRAW, DRAFT = range(4)

#: Tokens that are sorted first in search of the nucleus, seldom larger: sorting a vocabulary takes milliseconds.
_NUCLEUS = 1024


class Distribution:
    """A distribution over some tokens of the vocabulary.

    Attributes:
        token_ids: int64 [m], ascending.
        probabilities: float64 [m], sum 1.
    """

    __slots__ = ("probabilities", "token_ids")

    def __init__(self, token_ids: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
        self.token_ids = token_ids
        self.probabilities = probabilities

    def of(self, token_id: int) -> float:
        """Probability of one token."""
        at = int(np.searchsorted(self.token_ids, token_id))
        found = at < len(self.token_ids) and self.token_ids[at] == token_id
        return float(self.probabilities[at]) if found else 0.0

    def draw(self, uniform: float) -> int:
        """The token where the cumulative sum, in order of ids, passes ``uniform`` in [0, 1)."""
        cumulative: NDArray[np.float64] = np.cumsum(self.probabilities)
        total = float(cumulative[-1])
        at = int(np.searchsorted(cumulative, uniform * total, side="right"))
        last = int(np.searchsorted(cumulative, total))  # whatever rounding does, nothing of probability 0
        return int(self.token_ids[min(at, last)])


class Sampler:
    """Draws the tokens of one request.

    Args:
        request: the request; its seed is None only with temperature 0.
        vocab_size: length of the logits.
    """

    def __init__(self, request: TokenRequest, vocab_size: int) -> None:
        params = self._params = request.sampling
        self._request = request
        self._vocab_size = vocab_size
        self._key = params.seed or 0
        # A model may name an end-of-sequence token that its vocabulary lacks: that one is never drawn.
        self._terminators = np.array(sorted(t for t in request.terminators if t < vocab_size), np.int64)
        self._bias = None
        if params.logit_bias:
            ids, values = zip(*sorted(params.logit_bias.items()), strict=True)
            self._bias = np.array(ids, np.int64), np.array(values, np.float64)
        self._allowed = None
        if params.allowed_token_ids is not None:
            self._allowed = np.zeros(vocab_size, np.bool_)
            self._allowed[list(params.allowed_token_ids)] = True
        self._needs_counts = bool(params.presence_penalty or params.frequency_penalty)
        self._seen = np.zeros(vocab_size, np.bool_) if params.repetition_penalty != 1 else None
        self._counts = np.zeros(vocab_size, np.int64) if self._needs_counts else None
        if self._seen is not None:
            self._seen[request.prompt_token_ids] = True

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self._params.greedy

    def uniform(self, position: int, purpose: int) -> float:
        """A number in [0, 1) that belongs to this seed, position and purpose alone."""
        return float(np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, position, purpose])).random())

    def accept(self, token_id: int) -> None:
        """Take note of a token of the completion."""
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1

    def shape(
        self, logits: NDArray[np.float32], tokens: list[int], generated: int, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """Logits after penalties, bias and bans; what cannot be drawn is minus infinity.

        Args:
            logits: float32 [vocab], the model's own; not changed.
            tokens: prompt and completion so far.
            generated: length of the completion so far.
            mask: bool [vocab], what a grammar allows, or None.

        Raises:
            InvalidRequest: nothing is left to draw.
            PluginError: the model's logits are not numbers.
        """
        shaped = logits.astype(np.float64)
        self._penalise(shaped)
        self._ban(shaped, tokens, generated, mask)
        highest = shaped.max()
        if np.isnan(highest):
            raise PluginError("the model computed logits that are not numbers; are its weights damaged?")
        if highest == -np.inf:
            raise InvalidRequest(
                "no token is left that allowed_token_ids, bad_words, logit_bias, min_tokens and the structure allow, "
                f"after {generated} tokens",
                field="sampling",
            )
        return shaped

    def _penalise(self, shaped: NDArray[np.float64]) -> None:
        params = self._params
        if self._seen is not None:
            # CTRL, equation 4 (Keskar et al. 2019), with the sign rule of Hugging Face's processor.
            penalty, seen = params.repetition_penalty, shaped[self._seen]
            with np.errstate(over="ignore"):
                shaped[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
            np.minimum(shaped, np.finfo(np.float64).max, out=shaped)
        if self._counts is not None:
            # OpenAI's API reference, "frequency and presence penalties".
            shaped -= params.frequency_penalty * self._counts + params.presence_penalty * (self._counts > 0)
        if self._bias is not None:
            ids, values = self._bias
            shaped[ids] += values

    def _ban(
        self, shaped: NDArray[np.float64], tokens: list[int], generated: int, mask: NDArray[np.bool_] | None
    ) -> None:
        if self._allowed is not None:
            shaped[~self._allowed] = -np.inf
        for word in self._request.bad_word_ids:
            head = len(word) - 1
            # Only the completion counts: a word that the prompt began may be ended.
            if head <= generated and tokens[len(tokens) - head :] == list(word[:-1]):
                shaped[word[-1]] = -np.inf
        if mask is not None:
            shaped[~mask] = -np.inf
        if generated < self._request.min_tokens:
            shaped[self._terminators] = -np.inf

    def distribution(self, shaped: NDArray[np.float64]) -> Distribution:
        """The distribution that is drawn from, temperature above 0."""
        params = self._params
        return truncate(shaped, params.temperature, params.top_k, params.top_p, params.min_p)

    def pick(self, shaped: NDArray[np.float64], position: int) -> int:
        """Draw the token at a position, without speculation."""
        if self.greedy:
            return int(np.argmax(shaped))  # the lowest id on a tie
        return self.distribution(shaped).draw(self.uniform(position, DRAW))


def truncate(logits: NDArray[np.float64], temperature: float, top_k: int, top_p: float, min_p: float) -> Distribution:
    """Softmax, cut to the ``top_k`` most likely tokens, then to the nucleus ``top_p``, then by ``min_p``; renormalised.

    On a tie at the edge of ``top_k`` or ``top_p`` the lower ids stay. ``top_p`` keeps the token with which the sum
    reaches it (Holtzman et al. 2019, section 3.1); each later cut looks at probabilities renormalised after the one
    before. ``min_p`` compares with the most likely token (Nguyen et al. 2024, arXiv:2407.01082).

    Args:
        logits: float64 [vocab]; minus infinity is never drawn.
        temperature: divides the logits; above 0.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
    """
    # The highest is taken off first: divided by a tiny temperature, it would overflow.
    values = logits - logits.max()
    token_ids = np.arange(len(values))
    if 0 < top_k < len(values):
        token_ids = _largest(values, top_k)
        token_ids = np.sort(token_ids[values[token_ids] > -np.inf])
        values = values[token_ids]
    with np.errstate(over="ignore"):
        values /= temperature
    probabilities = np.exp(values, out=values)
    probabilities /= probabilities.sum()
    if top_p < 1:
        keep = _nucleus(probabilities, top_p)
        token_ids, probabilities = token_ids[keep], probabilities[keep] / probabilities[keep].sum()
    if min_p > 0:
        keep = probabilities >= min_p * probabilities.max()
        token_ids, probabilities = token_ids[keep], probabilities[keep] / probabilities[keep].sum()
    return Distribution(token_ids, probabilities)


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest values, largest first, lower indices first where values are equal."""
    edge = np.partition(values, len(values) - count)[len(values) - count]
    candidates = np.flatnonzero(values >= edge)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the shortest beginning, most likely first, that reaches ``top_p``."""
    for count in (min(_NUCLEUS, len(probabilities)), len(probabilities)):
        order = _largest(probabilities, count)
        sums = np.cumsum(probabilities[order])
        if sums[-1] >= top_p:
            return np.sort(order[: np.searchsorted(sums, top_p) + 1])
    return np.arange(len(probabilities))  # the sum of all, rounded, stays below
