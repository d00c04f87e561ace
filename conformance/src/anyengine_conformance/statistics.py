"""Statistical tests under one false-alarm budget for the whole suite.

A suite that cries wolf is switched off. So all statistical checks together may fail a correct engine in at most one of
1,000 runs (:data:`BUDGET`), each in its share of that (:data:`SHARES`); by the union bound this holds however they
depend on one another. Every test here is exact, not asymptotic:

- :func:`binomial_p`: the tail of the binomial distribution, summed; :func:`binomial_bounds` inverts it.
- :func:`multinomial_p`: Pearson's chi-square, its null distribution drawn from the multinomial
  distribution itself, not the asymptotic one (Monte Carlo test: Barnard 1963; Hope 1968). The probability of
  ``p <= a`` under the null hypothesis is at most ``a`` for every ``a``, whatever the sample size and the cells.
  :func:`sum_p` is the same test of a sum over the draws, such as of their log-probabilities.

A rejection is confirmed (:func:`confirmed`): both a first and a fresh second sample must reject at the square root of
the share. The samples are independent, so the product is the share; each stage's threshold is then far from the extreme
tail, where 9,999 draws resolve it well, and the second sample costs nothing while nothing is wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["BUDGET", "SHARES", "binomial_bounds", "binomial_p", "confirmed", "multinomial_p", "share", "stage", "sum_p"]

#: Runs of the whole suite that may fail on a correct engine by chance.
BUDGET = 1e-3
#: Check or family → its part of the budget; the rest is for checks to come. A test holds the sum at 1 or less.
SHARES: dict[str, float] = {
    "seeds.draws-follow-the-distribution": 0.10,
    "seeds.choices-are-independent-draws": 0.05,
    "seeds.unseeded-varies": 0.05,
    "seeds.unseeded-choices-vary": 0.05,
    "knobs.temperature-zero-is-greedy": 0.03,
    "knobs.temperature-below-one-sharpens": 0.04,
    "knobs.temperature-above-one-flattens": 0.04,
    "knobs.top-k-bounds-the-support": 0.03,
    "knobs.top-p-bounds-the-mass": 0.03,
    "knobs.min-p-bounds-the-ratio": 0.03,
    "knobs.seed-is-used": 0.03,
    # Of near-ties beyond the gap, in all checks that judge greedy tokens by it: see families/parity.py.
    "parity": 0.05,
    "sampling.neutral-is-the-model": 0.02,
    "sampling.temperature-is-exact": 0.02,
    "sampling.top-k-is-exact": 0.02,
    "sampling.top-p-is-exact": 0.02,
    "sampling.min-p-is-exact": 0.02,
    "sampling.truncations-in-order": 0.02,
    "sampling.allowed-tokens-in-proportion": 0.02,
    "sampling.bias-is-added": 0.02,
    "sampling.later-tokens-follow-the-first": 0.02,
    "sampling.penalties-follow-the-formula": 0.02,
    "sampling.repetition-penalty-follows-the-formula": 0.02,
    "speculation.ngram-draws-follow-the-model": 0.05,
    "speculation.draft-draws-follow-the-model": 0.05,
}
#: Draws of the null distribution in a Monte Carlo test.
_DRAWS = 9_999


def share(check: str) -> float:
    """The false-alarm probability that a check may have.

    Args:
        check: an id; where it has no entry of its own, its family's, which the family divides among its checks.

    Raises:
        KeyError: neither has a share: write it into :data:`SHARES`.
    """
    found = SHARES.get(check, SHARES.get(check.partition(".")[0]))
    if found is None:
        raise KeyError(f"{check} is statistical and has no share of the budget in anyengine_conformance.statistics")
    return BUDGET * found


def stage(alpha: float) -> float:
    """The threshold of each of two independent samples that must both reject, for ``alpha`` in all."""
    return math.sqrt(alpha)


def binomial_p(successes: int, trials: int, probability: float) -> float:
    """The probability of at least this many successes.

    Args:
        successes: seen.
        trials: in all.
        probability: of each, at most, if nothing is wrong.
    """
    if successes <= 0:
        return 1.0
    if probability <= 0:
        return 0.0
    if probability >= 1:
        return 1.0
    return min(1.0, _tail(successes, trials)(probability))


def _tail(successes: int, trials: int) -> Callable[[float], float]:
    """The probability of at least so many successes, as a function of that of each, between 0 and 1."""
    counts = np.arange(successes, trials + 1)
    log_factorials = [math.lgamma(k + 1) + math.lgamma(trials - k + 1) for k in counts.tolist()]
    ways = math.lgamma(trials + 1) - np.array(log_factorials)

    def at(probability: float) -> float:
        logs = ways + counts * math.log(probability) + (trials - counts) * math.log1p(-probability)
        return math.fsum(np.exp(logs).tolist())

    return at


def binomial_bounds(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """The least and the greatest probability of a success; each holds with probability ``1 - alpha``.

    Those of Clopper and Pearson (1934), which are exact.

    Args:
        successes: seen.
        trials: in all.
        alpha: the probability that the least is too large, and that the greatest is too small.
    """

    def edge(successes: int) -> float:
        """The probability at which so many successes or more have the probability ``alpha``."""
        tail = _tail(successes, trials)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if tail(middle) > alpha else (middle, high)
        return low

    least = edge(successes) if successes else 0.0
    return least, 1 - edge(trials - successes) if successes < trials else 1.0


def multinomial_p(counts: Sequence[int], probabilities: Sequence[float], *, seed: int) -> float:
    """The probability of counts that deviate at least as much from a distribution, by Pearson's chi-square.

    Args:
        counts: seen, one an outcome.
        probabilities: of the outcomes, summing to 1; a count where the probability is 0 gives 0.
        seed: of the null distribution's draws.
    """
    seen = np.asarray(counts, np.int64)
    expected = np.asarray(probabilities, np.float64)
    expected = expected / expected.sum()
    if seen[expected <= 0].any():
        return 0.0
    seen, expected = seen[expected > 0], expected[expected > 0]
    total = int(seen.sum())
    draws = np.random.default_rng(seed).multinomial(total, expected, size=_DRAWS)
    chi_square = ((draws - total * expected) ** 2 / (total * expected)).sum(axis=1)
    observed = ((seen - total * expected) ** 2 / (total * expected)).sum()
    # What rounding alone parts counts as equal, which errs on the safe side.
    return float((1 + np.count_nonzero(chi_square >= observed * (1 - 1e-9))) / (1 + _DRAWS))


def sum_p(counts: Sequence[int], probabilities: Sequence[float], values: Sequence[float], *, seed: int) -> float:
    """The probability of draws whose values have at least this sum.

    Args:
        counts: seen, one an outcome.
        probabilities: of the outcomes, summing to 1.
        values: of the outcomes.
        seed: of the null distribution's draws.
    """
    expected = np.asarray(probabilities, np.float64)
    draws = np.random.default_rng(seed).multinomial(sum(counts), expected / expected.sum(), size=_DRAWS)
    sums, observed = draws @ np.asarray(values, np.float64), float(np.dot(counts, values))
    # What rounding alone parts counts as equal, which errs on the safe side.
    return float((1 + np.count_nonzero(sums >= observed - 1e-9 * max(1.0, abs(observed)))) / (1 + _DRAWS))


async def confirmed(alpha: float, sample: Callable[[int], Awaitable[float]]) -> tuple[float, ...] | None:
    """Draw a sample, and if it rejects a fresh one.

    Args:
        alpha: the false-alarm probability of both together.
        sample: takes 0 for the first and 1 for the second sample, returns its p-value. The two must be independent.

    Returns:
        The two p-values if both reject; None if the engine passes.
    """
    found: list[float] = []
    for number in range(2):
        found.append(await sample(number))
        if found[-1] > stage(alpha):
            return None
    return tuple(found)
