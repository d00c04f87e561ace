"""The whole suite through this plugin, against the *simulated* LMDeploy: it says nothing of the engine itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine_conformance import Settings
from anyengine_conformance.check import all_checks
from anyengine_conformance.progress import details
from anyengine_conformance.runner import Runner
from anyengine_conformance.settings import read_expected_failures
from anyengine_conformance.subject import PluginTarget
from anyengine_lmdeploy import plugin

if TYPE_CHECKING:
    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Result

#: What the suite cannot say of the simulation: exactly these, no more and no fewer.
EXPECTED = json.loads((Path(__file__).parent / "expected_outcomes.json").read_bytes())
#: For which the small model has no fitting distribution.
LARGE = ("sampling.truncations-in-order",)

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("simulated")]


@pytest.fixture(scope="module", params=["turbomind", "pytorch"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def _run(backend: str, model: Path, checks: list[Check]) -> list[Result]:
    config = {"model": str(model), "isolation": "none", "native": {"backend": backend}}
    settings = Settings(engine="lmdeploy", config=config, time_factor=6.0, simulated=True)
    expected = read_expected_failures(Path(__file__).parent / "xfails-simulated.toml")
    if backend == "turbomind":  # it has no adapters
        del expected["adapters.side-by-side"]
    runner = Runner(settings, target=PluginTarget(plugin), expected=expected)
    try:
        runner.open()
        return runner.run(checks).results
    finally:
        runner.close()


@pytest.fixture(scope="module")
def results(backend: str, simulated: Any, storyteller: Path, draft: Path) -> list[Result]:
    """Of the small model: to the mapping it is all the same, and thousands of draws cost half as much."""
    small = [made for made in all_checks() if made.id not in LARGE]
    large = [made for made in all_checks() if made.id in LARGE]
    return _run(backend, draft, small) + _run(backend, storyteller, large)


def test_no_check_fails(results: list[Result]) -> None:
    bad = ["\n".join(details(result)) for result in results if not result.good]
    assert bad == [], "\n".join(bad)
    assert len(results) == len(all_checks())


@pytest.mark.parametrize("outcome", ["unsupported", "not-run"])
def test_what_is_not_passed_is_what_is_expected(results: list[Result], backend: str, outcome: str) -> None:
    assert sorted(result.id for result in results if result.outcome == outcome) == EXPECTED[backend][outcome]
