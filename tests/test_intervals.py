"""The estimates of benchmarks/intervals.py, against a published example and by what they promise."""

import importlib
import math
import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("intervals")


def test_the_pseudomedian_is_the_median_of_the_means_of_pairs(intervals):
    # The depression scores of Hollander, Wolfe and Chicken's example 3.1: estimate -0.46, and the interval of the
    # large-sample formula, the fifth smallest and the fifth largest mean.
    differences = [-0.952, 0.147, -1.022, -0.430, -0.620, -0.590, -0.490, 0.080, -0.010]
    found = intervals.pseudomedian([math.exp(each) for each in differences])
    means = sorted((a + b) / 2 for i, a in enumerate(differences) for b in differences[i:])
    assert math.log(found["median"]) == pytest.approx(-0.46)
    assert math.log(found["low"]) == pytest.approx(means[4])
    assert math.log(found["high"]) == pytest.approx(means[-5])


def test_a_ratio_turned_round_is_as_far_from_one(intervals):
    draw = random.Random(0)  # noqa: S311 no secret
    ratios = [math.exp(draw.gauss(0.02, 0.1)) for _ in range(31)]
    found, turned = intervals.pseudomedian(ratios), intervals.pseudomedian([1 / each for each in ratios])
    assert turned["median"] == pytest.approx(1 / found["median"])
    assert (turned["low"], turned["high"]) == (pytest.approx(1 / found["high"]), pytest.approx(1 / found["low"]))


@pytest.mark.parametrize("name", ["interval", "pseudomedian"])
def test_the_interval_holds_the_median_as_often_as_it_says(intervals, name):
    draw = random.Random(1)  # noqa: S311 no secret
    estimate = getattr(intervals, name)
    hits = 0
    for _ in range(2000):
        found = estimate([math.exp(draw.gauss(0, 0.12)) for _ in range(16)])
        assert found["low"] <= found["median"] <= found["high"]
        hits += found["low"] <= 1 <= found["high"]
    assert hits / 2000 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("name", ["interval", "pseudomedian"])
def test_of_few_values_all_are_within(intervals, name):
    assert getattr(intervals, name)([1.1, 0.9, 1.3]) == {
        "median": pytest.approx(1.1, abs=0.01),
        "low": 0.9,
        "high": 1.3,
    }


def test_of_many_values_it_is_as_narrow_as_so_many_make_it(intervals):
    # Normal approximation: the median's rank scatters by half the square root of their number.
    for n in (100, 1_000, 1_200, 20_000):
        found = intervals.interval([float(value) for value in range(n)])
        assert found["high"] - found["low"] == pytest.approx(1.96 * math.sqrt(n), abs=3)
        assert found["high"] + found["low"] == n - 1
