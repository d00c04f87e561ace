"""Exact distributions from the oracle's scores, draws, and a test that knows the data type's rounding.

The test: Pearson's chi-square with its null distribution drawn (see :func:`statistics.multinomial_p`), but not against
one distribution: an engine in bf16 has probabilities that are off by some per cent, and enough draws would find that.
The null hypothesis is the band of all distributions whose log-probabilities differ by at most the near-tie gap of the
data type. Counts are held against the member of the band that makes them the most likely. Where a temperature is
tested, so is the one number that it changes, the mean of the log-probabilities: a chi-square of many cells would hardly
see a tenth. `conformance/tests/test_sampling_power.py` simulates false alarms and power.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from anyengine_conformance.statistics import confirmed, multinomial_p, sum_p

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from anyengine import SamplingParams

    from anyengine_conformance.context import Context

__all__ = [
    "ORDER",
    "OTHER",
    "banded_p",
    "draws",
    "judge",
    "mean_p",
    "resembled",
    "robust",
    "shaped",
    "surest",
    "with_beyond",
]

#: In the place of a token: all that are beyond a list.
_BEYOND = -1
#: The cell of everything that has no cell of its own.
OTHER = "other tokens"
ORDER = ("top_k", "top_p", "min_p")
_BATCH = 128
#: Outcomes that a message shows: all, but of the checks that have many.
_TOLD = 12
_TRIALS = 12


def banded_p(counts: Sequence[int], probabilities: Sequence[float], slack: float, *, seed: int) -> float:
    """The p-value of counts against all distributions within a factor of e**slack of one.

    Args:
        counts: seen, one an outcome.
        probabilities: of the outcomes, summing to 1.
        slack: nats that each log-probability may be off.
        seed: of the null distribution's draws.
    """
    total = sum(counts)
    low, high = _band(probabilities, slack)
    # Maximum likelihood within the band: shares in proportion to the counts, cut to the band (the Karush-Kuhn-Tucker
    # conditions), the factor found by bisection of its logarithm.
    nearest, least, most = list(probabilities), -50.0, 50.0
    for _ in range(100):
        factor = math.exp((least + most) / 2)
        nearest = [
            min(above, max(below, factor * count / total))
            for count, below, above in zip(counts, low, high, strict=True)
        ]
        least, most = ((least + most) / 2, most) if sum(nearest) < 1 else (least, (least + most) / 2)
    scale = sum(nearest)
    return multinomial_p(counts, [share / scale for share in nearest], seed=seed)


def _band(probabilities: Sequence[float], slack: float) -> tuple[list[float], list[float]]:
    """The least and the most that each may be."""
    low = [share * math.exp(-slack) for share in probabilities]
    high = [min(1.0, share * math.exp(slack)) for share in probabilities]
    return low, high


def mean_p(counts: Sequence[int], probabilities: Sequence[float], slack: float, *, seed: int) -> float:
    """The p-value of the mean log-probability against all distributions within a factor of e**slack of one, both sides.

    Args:
        counts: seen, one an outcome.
        probabilities: of the outcomes, above 0 and summing to 1.
        slack: nats that each log-probability may be off.
        seed: of the null distribution's draws.
    """
    low, high = _band(probabilities, slack)
    values = [math.log(share) for share in probabilities]
    found: list[float] = []
    for sign in (1, -1):
        # The member of the band whose every tail is the heaviest on this side: as much as may be where values are the
        # largest. Its mean is stochastically the largest, so that no other member gives a greater p-value.
        furthest, left = list(low), 1 - sum(low)
        for place in sorted(range(len(values)), key=lambda place: -sign * values[place]):
            more = min(left, high[place] - low[place])
            furthest[place], left = low[place] + more, left - more
        found.append(sum_p(counts, furthest, [sign * value for value in values], seed=seed))
    return min(1.0, 2 * min(found))


def resembled(counts: Sequence[int], logprobs: Sequence[float]) -> float:
    """The temperature that makes counts the most likely, between 0.05 and 20.

    Args:
        counts: seen, one an outcome.
        logprobs: of the outcomes at temperature 1, give or take the same for all.
    """
    values = np.asarray(logprobs) - max(logprobs)
    seen = float(np.dot(counts, values) / sum(counts))
    cold, hot = math.log(0.05), math.log(20.0)
    for _ in range(60):  # the mean grows with the cold
        middle = (cold + hot) / 2
        weights = np.exp(values / math.exp(middle))
        cold, hot = (middle, hot) if float(np.dot(weights, values) / weights.sum()) > seen else (cold, middle)
    return math.exp(cold)


def shaped(logprobs: Mapping[int, float], sampling: SamplingParams, order: Sequence[str] = ORDER) -> dict[int, float]:
    """What is drawn from, as docs/semantics.md says: bias, allowed tokens, temperature, then the truncations in order.

    Args:
        logprobs: of the most likely tokens; see also :func:`with_beyond`.
        sampling: its fields; penalties are not for here.
        order: of the truncations, for those that have another one.
    """
    bias, allowed = sampling.logit_bias or {}, sampling.allowed_token_ids
    values = {token: value + bias.get(token, 0.0) for token, value in logprobs.items() if token != _BEYOND}
    if allowed is not None:
        values = {token: value for token, value in values.items() if token in allowed}
    highest = max(values.values())
    kept = {token: math.exp((value - highest) / sampling.temperature) for token, value in values.items()}
    beyond = math.exp(logprobs[_BEYOND] - highest) if _BEYOND in logprobs else 0.0
    for step in order:
        cut = _cut(kept, step, sampling, beyond)
        beyond, kept = beyond if cut is kept else 0.0, cut
    return _normalised(kept)


def with_beyond(logprobs: Mapping[int, float]) -> dict[int, float]:
    """The most likely tokens, and what all the others have together, of which ``top_p`` is a share too.

    For temperature 1, without bias and allowed tokens: else nobody knows what they have.
    """
    beyond = 1 - math.fsum(map(math.exp, logprobs.values()))
    return {**logprobs, _BEYOND: math.log(beyond)} if beyond > 0 else dict(logprobs)


def _normalised(kept: Mapping[int, float]) -> dict[int, float]:
    total = math.fsum(kept.values())
    return {token: share / total for token, share in kept.items()}


def _cut(kept: dict[int, float], step: str, sampling: SamplingParams, beyond: float) -> dict[int, float]:
    """What a truncation leaves of these weights, where the tokens beyond them weigh that much together; itself if it
    cuts nothing.
    """
    total = math.fsum(kept.values()) + beyond
    shares = {token: weight / total for token, weight in kept.items()}
    ranked = sorted(shares, key=lambda token: (-shares[token], token))
    if step == "top_k" and sampling.top_k:
        ranked = ranked[: sampling.top_k]
    elif step == "top_p" and sampling.top_p < 1:
        mass, place = 0.0, 0
        while place < len(ranked) and mass < sampling.top_p:
            mass += shares[ranked[place]]
            place += 1
        ranked = ranked[:place]
    elif step == "min_p" and sampling.min_p:
        ranked = [token for token in ranked if shares[token] >= sampling.min_p * shares[ranked[0]]]
    else:
        return kept
    return {token: kept[token] for token in ranked}


def robust(
    t: Context, logprobs: Mapping[int, float], support: Callable[[Mapping[int, float]], set[int]], gap: float
) -> bool:
    """Whether the support is the same however the data type rounds."""
    wanted = support(logprobs)
    highest = max(wanted, key=logprobs.__getitem__)
    # The worst that rounding can do moves each of these as a whole: the best token, the others that are kept, the rest.
    for best, kept, rest in product((-gap / 2, gap / 2), repeat=3):
        moved = {
            token: value + (best if token == highest else kept if token in wanted else rest)
            for token, value in logprobs.items()
        }
        if support(moved) != wanted:
            return False
    generator = random.Random(t.seed)  # noqa: S311 nothing secret
    for _ in range(_TRIALS):
        moved = {token: value + generator.uniform(-gap / 2, gap / 2) for token, value in logprobs.items()}
        if support(moved) != wanted:
            return False
    return True


def surest(
    t: Context,
    candidates: Sequence[tuple[Any, Mapping[int, float], SamplingParams]],
    gap: float,
    reason: str,
    *,
    most: int = 8,
) -> tuple[Any, dict[int, float], SamplingParams]:
    """The first candidate whose support no rounding changes: prompt, distribution, parameters.

    Args:
        t: of the check.
        candidates: prompt, log-probabilities behind it, sampling parameters.
        gap: of the data type.
        reason: what is lacking if there is none.
        most: tokens of a support.
    """
    for prompt, logprobs, sampling in candidates:

        def support(values: Mapping[int, float], sampling: SamplingParams = sampling) -> set[int]:
            return set(shaped(values, sampling))

        if 1 < len(support(logprobs)) <= most and robust(t, logprobs, support, gap):
            return prompt, shaped(logprobs, sampling), sampling
    raise t.skip(f"{reason}, in {t.dtype}, behind any of the prompts")


async def draws(
    t: Context, prompt: Any, sampling: SamplingParams, total: int, number: int, *, length: int = 1
) -> Counter[tuple[int, ...]]:
    """Count the first ``length`` tokens of so many completions.

    Args:
        t: of the check.
        prompt: text or token ids.
        sampling: parameters, without a seed.
        total: completions.
        number: of the sample: each has seeds of its own.
        length: tokens of each.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for first in range(0, total, _BATCH):
        if "seed" in t.capabilities.sampling:
            seed = (t.seed + (number << 32) + first * 7919) % 2**62
            sampling = sampling.model_copy(update={"seed": seed})
        size = min(_BATCH, total - first)
        answer = await t.generate(prompt, n=size, max_tokens=length, sampling=sampling, **t.unending)
        counts.update(tuple(choice.token_ids) for choice in answer.choices)
    return counts


async def judge(
    t: Context,
    expected: Mapping[Any, float],
    sample: Callable[[int], Any],
    *,
    slack: float,
    told: str,
    tests: int = 1,
    temperature: float | None = None,
) -> None:
    """Counts of two samples must not both deviate from the distribution.

    Args:
        t: of the check.
        expected: outcome → probability; what is missing there belongs to :data:`OTHER`, or to nothing.
        sample: gives counts of outcomes for a number.
        slack: nats that the data type may shift.
        told: what is expected, in words.
        tests: how many of these the check makes; its share of the budget is divided among them.
        temperature: that the distribution is of, where that is what is tested.

    Raises:
        Violation: both do.
    """
    cells: list[Hashable] = list(expected)
    seen: list[dict[Any, int]] = []

    async def p_value(number: int) -> float:
        counts = await sample(number)
        strange = {outcome: count for outcome, count in counts.items() if outcome not in expected}
        if OTHER in expected:
            counts = {**counts, OTHER: sum(strange.values())}
            strange = {}
        seen.append({outcome: counts.get(outcome, 0) for outcome in cells} | strange)
        if strange:
            return 0.0
        numbers = [counts.get(outcome, 0) for outcome in cells]
        shares = list(expected.values())
        found = banded_p(numbers, shares, slack, seed=t.seed + number)
        if temperature is None:
            return found
        return min(1.0, 2 * min(found, mean_p(numbers, shares, slack, seed=t.seed + number)))

    rejected = await confirmed(t.alpha / tests, p_value)
    wanted = {outcome: round(share, 4) for outcome, share in expected.items()}
    shares = [{key: round(count / max(1, sum(one.values())), 4) for key, count in one.items()} for one in seen]
    like = ""
    if temperature is not None and rejected is not None:
        both = [sum(one[outcome] for one in seen) for outcome in expected]
        logprobs = [temperature * math.log(share) for share in expected.values()]
        like = f"as if the temperature were {resembled(both, logprobs):.2f}: "
    t.expect(
        rejected is None,
        expected=f"{told}: shares like {_first_of(wanted)}, give or take chance and {slack:.3f} nats of rounding",
        seen=f"{like}shares {[_first_of(one) for one in shares]} in two samples, with p-values {rejected}",
    )


def _first_of(shares: Mapping[Any, float]) -> dict[Any, float]:
    """What a message has room for."""
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:_TOLD])
