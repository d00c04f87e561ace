"""Drawing as the two backends do it: another order than the reference engine's, and other omissions."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine_reference.sampling import Distribution, Sampler, truncate

from .facts import SimulationError, limit
from .tensor import tensor

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

__all__ = ["PytorchSampler", "TurbomindSampler"]

logger = logging.getLogger("lmdeploy")


def _penalise(shaped: Any, seen: Any, penalty: float) -> None:
    if penalty != 1:
        values = shaped[seen]
        shaped[seen] = np.where(values < 0, values * penalty, values / penalty)


def _uniform(seed: int, position: int, purpose: int) -> float:
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, position, purpose])).random())


class _Sampler(Sampler):
    """What both have in common.

    Attributes:
        rows: the model's own logits of each token drawn, if they were asked for.
    """

    def __init__(self, request: TokenRequest, vocab_size: int, config: Any) -> None:
        super().__init__(request, vocab_size)
        self._config = config
        self._present = np.zeros(vocab_size, np.bool_)
        self._prompt_length = len(request.prompt_token_ids)
        self.rows: list[Any] = []

    def accept(self, token_id: int) -> None:
        self._present[token_id] = True

    def _allow(self, shaped: Any, mask: Any) -> None:
        if mask is not None:
            shaped[~mask] = -np.inf

    def _check(self, shaped: Any) -> Any:
        if shaped.max() == -np.inf:
            raise SimulationError("nothing is left to draw: LMDeploy goes on, with a token of no meaning")
        return shaped


class TurbomindSampler(_Sampler):
    """TurboMind's. The order of its steps is in C++ and was not read.

    Attributes:
        kept: for each token drawn, log-probabilities of the tokens that were left after every cut, likeliest first.
    """

    def __init__(self, request: TokenRequest, vocab_size: int, config: Any) -> None:
        super().__init__(request, vocab_size, config)
        if config.temperature == 0:
            raise SimulationError("what TurboMind does at temperature 0 was not read")
        self._present[request.prompt_token_ids] = True
        self._seed = config.random_seed or 0
        self.kept: list[dict[int, float]] = []

    @property
    def greedy(self) -> bool:
        return self._config.top_k == 1

    def uniform(self, position: int, purpose: int) -> float:
        # The stream of a request begins with its completion, wherever that stands.
        return _uniform(self._seed, position - self._prompt_length, purpose)

    def shape(self, logits: Any, tokens: list[int], generated: int, mask: Any) -> Any:
        config = self._config
        if config.output_logits:
            self.rows.append(logits.copy())
        shaped = logits.astype(np.float64)
        _penalise(shaped, self._present, config.repetition_penalty)
        self._allow(shaped, mask)
        shaped[config.bad_token_ids or []] = -np.inf
        shaped /= config.temperature
        self._check(shaped)
        if config.logprobs:
            self.kept.append(self._kept(shaped))
        return shaped

    def distribution(self, shaped: Any) -> Distribution:
        config = self._config
        return truncate(shaped, 1.0, config.top_k, config.top_p, config.min_p)

    def _kept(self, shaped: Any) -> dict[int, float]:
        left = self.distribution(shaped)
        order = np.argsort(-left.probabilities, kind="stable")[: limit("most_logprobs_turbomind")]
        with np.errstate(divide="ignore"):
            values = np.log(left.probabilities[order])
        pairs = zip(left.token_ids[order].tolist(), values.tolist(), strict=True)
        return {token: value for token, value in pairs if value != -np.inf}


class PytorchSampler(_Sampler):
    """The PyTorch backend's.

    Its input of a step is made before the step before has ended: what counts generated tokens is a token late.
    """

    def __init__(self, request: TokenRequest, vocab_size: int, config: Any) -> None:
        super().__init__(request, vocab_size, config)
        self._temperature, self._top_k = config.temperature, config.top_k
        if self._temperature == 0:
            logger.warning("`temperature` is 0, set top_k=1.")
            self._temperature, self._top_k = 1.0, 1
        seed = random.getrandbits(64) if config.random_seed is None else config.random_seed
        self._seed = seed & (1 << limit("seed_bits_pytorch")) - 1
        self._min_new_tokens = config.min_new_tokens or 0
        if not 0 <= self._min_new_tokens <= config.max_new_tokens:
            logger.warning("`min_new_tokens` is %d, more than max_new_tokens", self._min_new_tokens)
            self._min_new_tokens = 0
        self._newest: int | None = None
        self._bad = config.bad_token_ids or []
        self._stops = config.stop_token_ids or []
        if config.ignore_eos:
            # The same list: a configuration that is used again has them twice.
            self._bad += self._stops
            self._stops = []

    @property
    def stops(self) -> list[int]:
        """Tokens that end the request."""
        return self._stops

    @property
    def greedy(self) -> bool:
        return self._top_k == 1

    def uniform(self, position: int, purpose: int) -> float:
        return _uniform(self._seed, position, purpose)

    def accept(self, token_id: int) -> None:
        if self._newest is not None:
            super().accept(self._newest)
        self._newest = token_id

    def shape(self, logits: Any, tokens: list[int], generated: int, mask: Any) -> Any:
        config = self._config
        row = tensor(logits.astype(np.float32))
        self._allow(row, mask)
        if config.logits_processors:
            # The batch has one tensor: rows are padded on the left to its longest, with the pad token.
            padding = [0] * (len(tokens) % 3)
            ids = tensor(np.array(padding + tokens, np.int64))
            for processor in config.logits_processors:
                made = processor(ids, row)
                if made.shape != row.shape:
                    raise SimulationError(f"a processor made {made.shape} of {row.shape}")
                row = made
        shaped = np.asarray(row).astype(np.float64)
        _penalise(shaped, self._present, config.repetition_penalty)
        shaped /= self._temperature
        shaped[self._bad] = -np.inf
        if max(generated - 1, 0) < self._min_new_tokens:
            shaped[self._stops] = -np.inf
        return self._check(shaped)

    def distribution(self, shaped: Any) -> Distribution:
        config = self._config
        return truncate(shaped, 1.0, self._top_k, config.top_p, config.min_p)
