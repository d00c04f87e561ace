"""Drawing as TensorRT-LLM's two samplers do, as far as that was read: another order than the reference engine's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine_reference.sampling import Distribution, Sampler, truncate

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

__all__ = ["SimulatedSampler"]

#: More are not kept, and it is not said.
_MOST_TOP_K = 1024
_TINY = 1e-6


class SimulatedSampler(Sampler):
    """One request's sampler.

    Args:
        request: what the scheduler knows of it.
        vocab_size: length of the logits.
        params: TensorRT-LLM's ``SamplingParams``.
        in_cpp: the sampler in C++; the one in PyTorch ignores penalties, ``min_p``, ``seed``, bad words and
            ``min_tokens``.
        shared: the one random stream of the sampler in PyTorch.
    """

    def __init__(
        self, request: TokenRequest, vocab_size: int, params: Any, *, in_cpp: bool, shared: np.random.Generator
    ) -> None:
        super().__init__(request, vocab_size)
        self._native = params
        self._in_cpp = in_cpp
        self._shared = shared
        self._prompt = list(request.prompt_token_ids)
        self._counted = np.zeros(vocab_size, np.int64)
        self._present = np.zeros(vocab_size, np.bool_)
        self._present[self._prompt] = True
        for token in self._prompt[max(params.prompt_ignore_length or 0, 0) :]:
            self._counted[token] += 1
        self._bad = params.bad_words if in_cpp else []
        self._end = -1 if params.ignore_eos else params.end_id
        self._seed_key = params.seed or 0

    @property
    def greedy(self) -> bool:
        return self._native.greedy

    def uniform(self, position: int, purpose: int) -> float:
        if not self._in_cpp:
            return float(self._shared.random())
        counter = [0, 0, position, purpose]
        return float(np.random.Generator(np.random.Philox(key=self._seed_key, counter=counter)).random())

    def accept(self, token_id: int) -> None:
        self._present[token_id] = True
        self._counted[token_id] += 1

    def shape(self, logits: Any, tokens: list[int], generated: int, mask: Any) -> Any:
        """Grammar, bias, temperature, penalties, the end token held back, bad words."""
        native = self._native
        shaped = logits.astype(np.float64)
        if mask is not None:
            shaped[~mask] = -np.inf
        if native.embedding_bias is not None:
            shaped += native.embedding_bias.values
        temperature = 1.0 if native.temperature is None else native.temperature
        if temperature != 1.0:
            shaped /= temperature + _TINY
        if self._in_cpp:
            self._penalise(shaped)
            if self._end >= 0 and generated < (1 if native.min_tokens is None else native.min_tokens):
                shaped[self._end] = np.finfo(np.float64).min
            for word in self._bad:
                head = len(word) - 1
                if tokens[len(tokens) - head :] == word[:-1]:
                    shaped[word[-1]] = -np.inf
        return shaped

    def _penalise(self, shaped: Any) -> None:
        native = self._native
        if native.repetition_penalty not in (None, 1.0):
            seen = shaped[self._present]
            shaped[self._present] = np.where(
                seen < 0, seen * native.repetition_penalty, seen / native.repetition_penalty
            )
        counted = self._counted
        shaped -= (native.presence_penalty or 0.0) * (counted > 0) + (native.frequency_penalty or 0.0) * counted

    def distribution(self, shaped: Any) -> Distribution:
        native = self._native
        top_k = native.top_k or 0
        if self._in_cpp:
            top_k = min(top_k, _MOST_TOP_K)
            if native.min_p:
                shaped = np.where(shaped >= shaped.max() + np.log(native.min_p), shaped, -np.inf)
        top_p = 1.0 if native.top_p is None else native.top_p
        return truncate(shaped, 1.0, top_k, top_p, 0.0)
