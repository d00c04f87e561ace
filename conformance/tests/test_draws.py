"""What is told of sampling by draws alone, where the subject has no oracle."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from anyengine_conformance.broken import Fault, all_faults
from anyengine_conformance.families._draws import Counts
from anyengine_conformance.faults.knobs_sampling import ChangedSampling
from anyengine_conformance.runner import select
from anyengine_conformance.settings import Settings

CHECKS = (
    "knobs.temperature-zero-is-greedy",
    "knobs.temperature-below-one-sharpens",
    "knobs.temperature-above-one-flattens",
    "knobs.top-k-bounds-the-support",
)
WITHOUT_ORACLE = Settings(engine="simulated", oracle="none", load_timeout=60.0)


@pytest.fixture
def outcomes(make_runner):
    def run(checks, target=None):
        return {
            result.id: result for result in make_runner(target, settings=WITHOUT_ORACLE).run(select(checks)).results
        }

    return run


def test_a_healthy_engine_passes(outcomes):
    assert {name: result.outcome for name, result in outcomes(CHECKS).items()} == dict.fromkeys(CHECKS, "passed")


@pytest.mark.parametrize("fault", [each for each in all_faults() if each.check in CHECKS], ids=lambda each: each.name)
def test_each_fault_is_found(outcomes, fault):
    result = outcomes([fault.check], fault)[fault.check]
    assert result.outcome == "failed", result.reason
    assert result.seen


class NeverGreedy(ChangedSampling):
    """Temperature 0 draws, and otherwise each time."""

    requests = count(1)

    def fields(self, sampling):
        return {"temperature": 1.0, "seed": next(self.requests)} if sampling.temperature == 0 else {}


def test_a_field_is_not_blamed_where_temperature_0_gives_nothing_to_compare_it_with(outcomes):
    names = ["knobs.top-k-one-is-greedy", "knobs.smallest-top-p-is-greedy", "knobs.largest-min-p-is-greedy"]
    broken = Fault("knobs.temperature-zero-is-greedy", "it draws", (), "simulated", NeverGreedy)
    found = outcomes([*names, broken.check], broken)
    assert {name: result.outcome for name, result in found.items()} == {
        **dict.fromkeys(names, "not-run"),
        broken.check: "failed",
    }
    assert "temperature 0 gives other tokens each time" in found[names[0]].reason


@pytest.mark.parametrize("temperature", [0.5, 1.75])
@pytest.mark.parametrize(
    ("model", "tells"),
    [
        ([0.5, 0.2, 0.2, 0.1], True),
        ([0.3, 0.29, 0.21, 0.2], False),  # nearly even
        ([0.4, *[0.06] * 10], True),
        ([0.7, 0.3], True),
    ],
)
def test_the_range_at_another_temperature_is_wrong_as_seldom_as_it_says(model, tells, temperature: float):
    generator = np.random.default_rng(5)
    powers = np.asarray(model) ** (1 / temperature)
    truth = float(powers[0] / powers.sum())
    wrong, narrow = 0, 0
    for _ in range(200):
        counts = generator.multinomial(400, model).tolist()
        least, most = Counts(counts[0], counts[1], max(counts[1:]), 400).range(0.05, temperature, len(model))
        wrong += not least <= truth <= most
        narrow += not least <= model[0] <= most  # one who ignores the temperature is found out
    assert wrong / 200 <= 4 * 0.05
    assert narrow > 150 if tells else narrow < 50
