"""Draws follow the ten steps of "The draw" in ``docs/semantics.md``, computed here in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from anyengine import InvalidRequest, PluginError, SamplingParams
from anyengine.backend import TokenRequest
from anyengine_transformers.sampling import Sampler

VOCAB = 12
LOGITS = np.random.default_rng(11).normal(0, 1.5, VOCAB).astype(np.float32)
PROMPT = [1, 2, 2, 3]
COMPLETION = [4, 4, 5, 1]
DRAWS = 3_000
#: Standard normal quantile of one false alarm in a million. Seeds are fixed: what passes once passes always.
ALARM = 4.8


def request(**options: Any) -> TokenRequest:
    sampling = {name: options.pop(name) for name in list(options) if name in SamplingParams.model_fields}
    params = SamplingParams(**sampling)
    return TokenRequest(id="x", prompt_token_ids=PROMPT, sampling=params, max_tokens=99, **options)


def sampler(seed: int, wanted: TokenRequest, logits: Any = LOGITS) -> Sampler:
    made = Sampler(wanted, len(logits), seed)
    made._counts.update(COMPLETION)
    return made


def expected(wanted: TokenRequest, logits: Any = LOGITS) -> dict[int, float]:
    """Token to probability: steps 2 to 9."""
    params = wanted.sampling
    z = [float(value) for value in logits]
    for token in {*PROMPT, *COMPLETION}:
        z[token] *= params.repetition_penalty if z[token] <= 0 else 1 / params.repetition_penalty
    for token in set(COMPLETION):
        z[token] -= params.presence_penalty + params.frequency_penalty * COMPLETION.count(token)
    for token, bias in (params.logit_bias or {}).items():
        z[token] += bias
    left = set(range(len(z)) if params.allowed_token_ids is None else params.allowed_token_ids)
    text = " ".join(map(str, ["", *COMPLETION]))
    left -= {last for *head, last in wanted.bad_word_ids if text.endswith("".join(f" {token}" for token in head))}
    left -= wanted.terminators if len(COMPLETION) < wanted.min_tokens else set()
    ranked = sorted(left, key=lambda token: (-z[token], token))[: params.top_k or None]
    weights = {token: math.exp((z[token] - z[ranked[0]]) / params.temperature) for token in ranked}
    total, reached, nucleus = sum(weights.values()), 0.0, {}
    for token in ranked:
        if reached < params.top_p * total or params.top_p == 1:
            nucleus[token] = weights[token]
        reached += weights[token]
    kept = {token: weight for token, weight in nucleus.items() if weight >= params.min_p}
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def deviation(draws: list[int], probabilities: dict[int, float]) -> float:
    """Pearson's chi-square as a standard normal (Wilson and Hilferty 1931); cells that expect less than 5 are one."""
    counts = Counter(draws)
    assert set(counts) <= set(probabilities), "a token was drawn that cannot be"
    cells, seen, due = [], 0, 0.0
    for token, probability in sorted(probabilities.items(), key=lambda item: item[1]):
        seen, due = seen + counts[token], due + probability * len(draws)
        if due >= 5:
            cells.append((seen, due))
            seen, due = 0, 0.0
    if len(cells) < 2:
        return 0.0
    freedom = len(cells) - 1
    chi_square = sum((seen - due) ** 2 / due for seen, due in cells)
    return ((chi_square / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))


CASES: dict[str, dict[str, Any]] = {
    "neutral": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 4},
    "top_k beyond the vocabulary": {"top_k": 500},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "repetition": {"repetition_penalty": 1.8},
    "repetition reversed": {"repetition_penalty": 0.5},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "frequency reversed": {"frequency_penalty": -0.8},
    "bias": {"logit_bias": {0: 1.5, 7: -2.0}},
    "allowed": {"allowed_token_ids": [0, 3, 9]},
    "bad words": {"bad_word_ids": ((6,), (1, 7), (5, 1, 8), (4, 1, 9), (3, 4, 4, 5, 1, 10))},
    "min_tokens not reached": {"min_tokens": 5, "stop_token_ids": frozenset({2, 8})},
    "min_tokens reached": {"min_tokens": 4, "stop_token_ids": frozenset({2, 8})},
    "top_k before top_p": {"top_k": 4, "top_p": 0.8},
    "top_p before min_p": {"top_p": 0.8, "min_p": 0.3},
    "temperature before top_p": {"temperature": 2.5, "top_p": 0.6},
    "bias before temperature": {"temperature": 0.3, "logit_bias": {0: 0.5}},
    "penalty before bias": {"repetition_penalty": 2.0, "logit_bias": {4: 2.0, 2: -2.0}},
    "bans before top_k": {"allowed_token_ids": [1, 2, 3, 4, 5], "top_k": 2},
    "all": {
        "temperature": 0.8,
        "top_k": 8,
        "top_p": 0.9,
        "min_p": 0.03,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {4: 1.0, 11: 2.0},
        "allowed_token_ids": [1, 2, 3, 4, 5, 7, 8, 9, 11],
        "bad_word_ids": ((1, 7),),
        "min_tokens": 9,
        "eos_token_ids": frozenset({3}),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_documented_distribution(case: str) -> None:
    wanted = request(**CASES[case])
    draws = [sampler(seed, wanted).choose(LOGITS, COMPLETION, None) for seed in range(DRAWS)]
    assert deviation(draws, expected(wanted)) < ALARM


def test_the_statistic_sees_a_temperature_ten_per_cent_off() -> None:
    wanted = request(temperature=1.15)
    draws = [sampler(seed, wanted).choose(LOGITS, COMPLETION, None) for seed in range(3 * DRAWS)]
    assert deviation(draws, expected(request())) > ALARM


TIED = np.zeros(VOCAB, np.float32)


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, set(range(VOCAB))),
        ({"top_k": 3, "logit_bias": {11: 1.0}}, {11, 0, 1}),
        ({"temperature": 0, "logit_bias": {0: -1.0}}, {1}),
    ],
    ids=str,
)
def test_of_equals_the_lower_ids_stay(options: dict[str, Any], support: set[int]) -> None:
    drawn = {sampler(seed, request(**options), TIED).choose(TIED, COMPLETION, None) for seed in range(400)}
    assert drawn == support


@pytest.mark.parametrize("options", [{"temperature": 5e-324}, {"top_p": 5e-324}, {"top_k": 1}, {"temperature": 0}])
def test_extreme_values_choose_the_most_likely(options: dict[str, Any]) -> None:
    assert sampler(3, request(**options)).choose(LOGITS, COMPLETION, None) == int(LOGITS.argmax())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e300},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"logit_bias": {3: 1e308, 4: -1e308}, "repetition_penalty": 1e-300},
    ],
    ids=str,
)
def test_extreme_values_choose_something(options: dict[str, Any]) -> None:
    assert 0 <= sampler(3, request(**options)).choose(LOGITS, COMPLETION, None) < VOCAB


def test_a_mask_rules_out() -> None:
    mask = np.arange(VOCAB) == 7
    assert sampler(0, request()).choose(LOGITS, COMPLETION, mask) == 7


def test_nothing_left_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampler(0, request(allowed_token_ids=[3], bad_word_ids=((3,),))).choose(LOGITS, COMPLETION, None)
    assert caught.value.field == "sampling"


def test_logits_that_are_not_numbers_are_a_failure() -> None:
    broken = LOGITS.copy()
    broken[3] = np.nan
    with pytest.raises(PluginError, match="not numbers"):
        sampler(0, request(allowed_token_ids=[1])).choose(broken, COMPLETION, None)


def test_a_terminator_outside_the_vocabulary_is_harmless() -> None:
    wanted = request(min_tokens=9, stop_token_ids=frozenset({VOCAB + 3}))
    assert 0 <= sampler(0, wanted).choose(LOGITS, COMPLETION, None) < VOCAB


def test_penalties_count_what_was_chosen() -> None:
    made = Sampler(request(temperature=0, frequency_penalty=2.0), 2, 0)
    row = np.array([3.0, 0.5], np.float32)
    chosen: list[int] = []
    for _ in range(5):
        chosen.append(made.choose(row, chosen, None))
    assert chosen == [0, 0, 1, 0, 1]
    assert row.tolist() == [3.0, 0.5]
