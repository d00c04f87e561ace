"""Draws follow the distribution that ``docs/semantics.md`` defines, computed here by its ten steps, in plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from anyengine.errors import InvalidRequest, PluginError
from anyengine_reference.sampling import Sampler
from anyengine_reference.speculation import verify

VOCAB = 32
DRAWS = 20_000
#: One false alarm in a million a case. Seeds are fixed: a case that passes once passes always.
SIGNIFICANCE = 1e-6
LOGITS = np.random.default_rng(7).normal(0, 2, VOCAB).astype(np.float32)
PROMPT = [1, 2, 3, 3]
COMPLETION = [4, 4, 4, 2, 9]


def expected(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: dict[int, float] | None = None,
    allowed_token_ids: list[int] | None = None,
    bad_word_ids: tuple[tuple[int, ...], ...] = (),
    min_tokens: int = 0,
    terminators: frozenset[int] = frozenset(),
    logits: Any = LOGITS,
) -> dict[int, float]:
    """Token to probability, by steps 2 to 9 of "The draw"."""
    z = {token: float(value) for token, value in enumerate(logits)}
    for token in set(PROMPT + COMPLETION):
        z[token] = z[token] / repetition_penalty if z[token] > 0 else z[token] * repetition_penalty
    for token in set(COMPLETION):
        z[token] -= presence_penalty + frequency_penalty * COMPLETION.count(token)
    for token, bias in (logit_bias or {}).items():
        z[token] += bias
    banned = set() if allowed_token_ids is None else set(z) - set(allowed_token_ids)
    for *head, last in bad_word_ids:
        if head == COMPLETION[len(COMPLETION) - len(head) :]:
            banned.add(last)
    if len(COMPLETION) < min_tokens:
        banned |= terminators
    order = sorted((token for token in z if token not in banned), key=lambda token: (-z[token], token))
    order = order[: top_k or None]
    weights = {token: math.exp((z[token] - z[order[0]]) / temperature) for token in order}
    total = sum(weights.values())
    nucleus: dict[int, float] = {}
    for token in order:
        nucleus[token] = weights[token]
        if top_p < 1 and sum(nucleus.values()) >= top_p * total:
            break
    kept = {token: weight for token, weight in nucleus.items() if weight >= min_p * nucleus[order[0]]}
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def shaped(driving: Any, seed: int = 0, logits: Any = LOGITS, **options: Any) -> tuple[Sampler, Any]:
    terminators = options.pop("terminators", frozenset())
    wanted = driving.request(PROMPT, seed=seed, max_tokens=99, stop_token_ids=terminators, **options)
    sampler = Sampler(wanted, len(logits))
    for token in COMPLETION:
        sampler.accept(token)
    return sampler, sampler.shape(logits, PROMPT + COMPLETION, len(COMPLETION), None)


def draws(driving: Any, **options: Any) -> list[int]:
    """One draw for each of the seeds 0 to 19,999."""
    from anyengine_reference.sampling import DRAW

    sampler, values = shaped(driving, **options)
    distribution, position, drawn = sampler.distribution(values), len(PROMPT) + len(COMPLETION), []
    for seed in range(DRAWS):
        sampler._key = seed
        drawn.append(distribution.draw(sampler.uniform(position, DRAW)))
        if seed < 100:
            assert drawn[-1] == sampler.pick(values, position)
    return drawn


CASES: dict[str, dict[str, Any]] = {
    "neutral": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 5},
    "top_k of one": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 1_000},
    "top_p": {"top_p": 0.8},
    "top_p of almost nothing": {"top_p": 1e-9},
    "min_p": {"min_p": 0.1},
    "min_p of one": {"min_p": 1.0},
    "repetition": {"repetition_penalty": 1.7},
    "repetition reversed": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "presence reversed": {"presence_penalty": -2.0},
    "frequency": {"frequency_penalty": 0.7},
    "frequency reversed": {"frequency_penalty": -1.0},
    "bias": {"logit_bias": {0: 2.0, 5: -3.0, 31: 4.0}},
    "allowed": {"allowed_token_ids": [3, 8, 9, 30]},
    "bad words": {"bad_word_ids": ((6,), (9, 7), (2, 9, 8), (4, 9, 10), (3, 4, 4, 4, 2, 9, 11))},
    "min_tokens not reached": {"min_tokens": 6, "terminators": frozenset({3, 14})},
    "min_tokens reached": {"min_tokens": 5, "terminators": frozenset({3, 14})},
    "top_k before top_p": {"top_k": 6, "top_p": 0.7},
    "top_p before min_p": {"top_p": 0.6, "min_p": 0.5},
    "temperature before top_p": {"temperature": 2.5, "top_p": 0.6},
    "temperature before min_p": {"temperature": 2.5, "min_p": 0.3},
    "temperature after bias": {"temperature": 0.25, "logit_bias": {0: 1.0, 7: -1.0}},
    "penalties before bias": {"repetition_penalty": 2.0, "logit_bias": {4: 3.0, 2: -3.0}},
    "penalties before temperature": {"frequency_penalty": 0.5, "presence_penalty": 0.5, "temperature": 0.4},
    "bans before top_k": {"allowed_token_ids": list(range(10)), "top_k": 3},
    "all at once": {
        "temperature": 0.8,
        "top_k": 12,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {4: 2.0, 20: -1.0},
        "allowed_token_ids": [token for token in range(VOCAB) if token % 5],
        "bad_word_ids": ((9, 7), (13,)),
        "min_tokens": 9,
        "terminators": frozenset({3, 14}),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_documented_distribution(case: str, driving: Any, statistics: Any) -> None:
    options = CASES[case]
    assert statistics.p_value(draws(driving, **options), expected(**options)) > SIGNIFICANCE


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_the_documented_one_to_rounding(case: str, driving: Any) -> None:
    sampler, values = shaped(driving, **CASES[case])
    distribution = sampler.distribution(values)
    got = {
        int(token): float(probability)
        for token, probability in zip(distribution.token_ids, distribution.probabilities, strict=True)
        if probability
    }
    assert got == pytest.approx(expected(**CASES[case]), rel=1e-9)


def test_orders_that_matter_would_be_noticed(statistics: Any, driving: Any) -> None:
    """The test's own power: top_p over the whole vocabulary before top_k is another distribution."""
    wrong = {token: p for token, p in expected(top_p=0.7).items() if token in expected(top_k=6)}
    assert (
        statistics.p_value(draws(driving, top_k=6, top_p=0.7), {t: p / sum(wrong.values()) for t, p in wrong.items()})
        < SIGNIFICANCE
    )


@pytest.mark.parametrize("scale", [1.0, 1.06])
def test_chi_square_sees_a_temperature_six_per_cent_off(scale: float, statistics: Any, driving: Any) -> None:
    drawn = draws(driving, temperature=scale)
    assert (statistics.p_value(drawn, expected(temperature=1.0)) > SIGNIFICANCE) == (scale == 1.0)


TIED = np.zeros(VOCAB, np.float32)


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.25}, set(range(8))),
        ({"min_p": 1.0}, set(range(VOCAB))),
        ({"top_k": 3, "logit_bias": {30: 1.0}}, {30, 0, 1}),
    ],
)
def test_ties_at_an_edge_leave_the_lower_ids(options: dict[str, Any], support: set[int], driving: Any) -> None:
    sampler, values = shaped(driving, logits=TIED, **options)
    distribution = sampler.distribution(values)
    assert set(distribution.token_ids[distribution.probabilities > 0].tolist()) == support


def test_greedy_takes_the_lowest_of_equals_after_penalties(driving: Any) -> None:
    sampler, values = shaped(driving, logits=TIED, temperature=0, logit_bias={0: -1.0, 1: -1.0})
    assert sampler.pick(values, 9) == 2


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 5e-324, "top_p": 0.5}, {"top_p": 5e-324}])
def test_extreme_values_draw_the_most_likely(options: dict[str, Any], driving: Any) -> None:
    sampler, values = shaped(driving, **options)
    assert sampler.pick(values, 9) == int(np.argmax(LOGITS))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e300}, {"repetition_penalty": 1e-300}, {"repetition_penalty": 1e300}, {"logit_bias": {3: 1e308}}],
)
def test_extreme_values_draw_something(options: dict[str, Any], driving: Any) -> None:
    sampler, values = shaped(driving, **options)
    assert 0 <= sampler.pick(values, 9) < VOCAB


def test_a_large_nucleus_is_the_documented_one(driving: Any) -> None:
    """Where the nucleus is larger than what is sorted first."""
    logits = np.random.default_rng(3).normal(0, 0.3, 5_000).astype(np.float32)
    sampler, values = shaped(driving, logits=logits, top_p=0.9)
    got = set(sampler.distribution(values).token_ids.tolist())
    assert got == set(expected(top_p=0.9, logits=logits))
    assert len(got) > 1024


def test_nothing_left_to_draw_is_refused_by_name(driving: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shaped(driving, allowed_token_ids=[3], bad_word_ids=((3,),))
    assert caught.value.field == "sampling"


def test_logits_that_are_not_numbers_are_a_failure_and_no_misuse(driving: Any) -> None:
    with pytest.raises(PluginError):
        shaped(driving, logits=np.full(VOCAB, np.nan, np.float32))


def test_terminators_outside_the_vocabulary_are_harmless(driving: Any) -> None:
    _, values = shaped(driving, min_tokens=9, terminators=frozenset({VOCAB + 5}))
    assert np.isfinite(values).all()


def test_uniform_numbers_differ_by_seed_position_and_purpose_and_by_nothing_else(driving: Any) -> None:
    def numbers(seed: int) -> list[float]:
        sampler = Sampler(driving.request([1], seed=seed), VOCAB)
        return [sampler.uniform(position, purpose) for position in range(50) for purpose in range(4)]

    everything = [number for seed in (0, 1, 2**62, 2**63 - 1) for number in numbers(seed)]
    assert len(set(everything)) == len(everything)
    assert numbers(1) == numbers(1)
    assert all(0 <= number < 1 for number in everything)


def test_logits_are_not_changed(driving: Any) -> None:
    before = LOGITS.copy()
    shaped(driving, repetition_penalty=2.0, presence_penalty=1.0, logit_bias={1: 2.0})
    np.testing.assert_array_equal(LOGITS, before)


SPARSE = np.log(np.array([0.5, 0.3, 0.2] + [1e-300] * 5))
TARGETS = {
    "equal": ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    "near": ([0.1, 0.2, 0.3, 0.4], [0.15, 0.25, 0.25, 0.35]),
    "opposite": ([0.7, 0.2, 0.05, 0.05], [0.05, 0.05, 0.2, 0.7]),
    "disjoint": ([0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]),
    "proposal within the target": ([0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]),
    "target within the proposal": ([0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]),
    "certain": ([0.1, 0.2, 0.3, 0.4], None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_verification_gives_is_distributed_as_the_target(name: str, driving: Any, statistics: Any) -> None:
    from anyengine_reference.sampling import DRAFT, Distribution

    target, source = TARGETS[name]
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(target))
    drawn_from = None if source is None else Distribution(np.arange(4), np.array(source))
    sampler = Sampler(driving.request([0], seed=0), 4)
    outcomes, kept = [], 0
    for seed in range(DRAWS):
        sampler._key = seed
        proposed = 1 if drawn_from is None else drawn_from.draw(sampler.uniform(5, DRAFT))
        token, accepted = verify(sampler, logits, 5, proposed, drawn_from)
        assert accepted == (token == proposed)
        outcomes.append(token)
        kept += accepted
    exact = {token: probability for token, probability in enumerate(target) if probability}
    assert statistics.p_value(outcomes, exact) > SIGNIFICANCE
    # Leviathan et al. 2023, theorem 3.5: kept with probability sum(min(p, q)).
    rate = target[1] if source is None else sum(map(min, target, source))
    assert (
        statistics.p_value(
            [True] * kept + [False] * (DRAWS - kept),
            {outcome: p for outcome, p in ((True, rate), (False, 1 - rate)) if p > 1e-12},
        )
        > SIGNIFICANCE
    )
