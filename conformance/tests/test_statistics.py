"""The false-alarm rate and the power of the statistical tests, simulated."""

import asyncio
import math

import numpy as np
import pytest
from anyengine_conformance import statistics
from anyengine_conformance.check import all_checks

#: What the checks compare: four tokens, of a distribution that is neither even nor extreme.
FAIR = [0.55, 0.25, 0.15, 0.05]
DRAWS = 600


def _rejects(generator: np.random.Generator, truth: list[float], alpha: float) -> bool:
    async def sample(number: int) -> float:
        counts = generator.multinomial(DRAWS, truth)
        return statistics.multinomial_p(counts.tolist(), FAIR, seed=number)

    return asyncio.run(statistics.confirmed(alpha, sample)) is not None


def test_the_shares_fit_into_the_budget():
    assert math.fsum(statistics.SHARES.values()) <= 1


def test_every_share_belongs_to_a_check_or_a_family():
    known = {made.id for made in all_checks()}
    strangers = {name for name in statistics.SHARES if "." in name} - known
    assert strangers == set()


def test_a_check_without_a_share_is_told_to_get_one():
    with pytest.raises(KeyError, match="no share of the budget"):
        statistics.share("streaming.terminal-is-last")


@pytest.mark.timeout(300)
def test_a_fair_engine_is_rejected_as_often_as_the_share_says():
    # At a share that can be seen in few runs: the construction is the same at every share.
    alpha, runs = 0.01, 2000
    generator = np.random.default_rng(1)
    alarms = sum(_rejects(generator, FAIR, alpha) for _ in range(runs))
    # Not more than alpha, up to four standard deviations of this simulation.
    assert alarms <= alpha * runs + 4 * math.sqrt(alpha * runs)
    assert alarms > 0


@pytest.mark.timeout(300)
def test_a_single_stage_keeps_its_level_exactly():
    generator = np.random.default_rng(2)
    counts = generator.multinomial(DRAWS, FAIR, size=1000).tolist()
    p_values = np.array([statistics.multinomial_p(count, FAIR, seed=number) for number, count in enumerate(counts)])
    for level in (0.01, 0.05, 0.2):
        assert (p_values <= level).mean() <= level + 4 * math.sqrt(level / len(p_values))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_wrong_temperature_is_nearly_always_found_at_the_real_share(temperature: float):
    powers = [probability ** (1 / temperature) for probability in FAIR]
    truth = [power / sum(powers) for power in powers]
    alpha = statistics.share("seeds.draws-follow-the-distribution")
    generator = np.random.default_rng(3)
    assert sum(_rejects(generator, truth, alpha) for _ in range(50)) == 50


def test_a_token_that_cannot_be_is_found_at_once():
    assert statistics.multinomial_p([10, 10, 1], [0.5, 0.5, 0.0], seed=0) == 0


@pytest.mark.parametrize(
    ("successes", "trials", "probability", "expected"),
    [(0, 10, 0.3, 1.0), (10, 10, 0.5, 0.5**10), (1, 3, 0.5, 7 / 8), (5, 10, 0.0, 0.0), (3, 10, 1.0, 1.0)],
)
def test_the_binomial_tail(successes: int, trials: int, probability: float, expected: float):
    assert statistics.binomial_p(successes, trials, probability) == pytest.approx(expected, rel=1e-12)


def test_the_bounds_of_a_probability_are_those_of_clopper_and_pearson():
    # 8 of 20 at 2.5% on each side, as tables have it.
    assert statistics.binomial_bounds(8, 20, 0.025) == pytest.approx((0.19119, 0.63946), abs=1e-5)
    assert statistics.binomial_bounds(0, 20, 0.05) == pytest.approx((0.0, 1 - 0.05 ** (1 / 20)))
    assert statistics.binomial_bounds(20, 20, 0.05) == pytest.approx((0.05 ** (1 / 20), 1.0))
