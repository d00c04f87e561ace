"""The whole suite through this plugin, against the *simulated* LMDeploy: it says nothing of the engine itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anyengine_conformance import Settings
from anyengine_conformance.check import all_checks
from anyengine_conformance.progress import details
from anyengine_conformance.runner import Runner
from anyengine_conformance.settings import read_expected_failures
from anyengine_conformance.subject import PluginTarget
from anyengine_lmdeploy import plugin

#: What the suite cannot say of the simulation: exactly these, no more and no fewer.
EXPECTED = json.loads((Path(__file__).parent / "expected_outcomes.json").read_bytes())

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("simulated")]


@pytest.fixture(scope="module", params=["turbomind", "pytorch"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def results(backend: str, simulated: Any, storyteller: Path) -> list[Any]:
    config = {"model": str(storyteller), "isolation": "none", "native": {"backend": backend}}
    settings = Settings(engine="lmdeploy", config=config, time_factor=6.0)
    expected = read_expected_failures(Path(__file__).parent / "xfails-simulated.toml")
    if backend == "turbomind":  # it has no adapters
        del expected["adapters.side-by-side"]
    runner = Runner(settings, target=PluginTarget(plugin), expected=expected)
    try:
        runner.open()
        return runner.run(all_checks()).results
    finally:
        runner.close()


def test_no_check_fails(results: list[Any]) -> None:
    assert ["\n".join(details(result)) for result in results if not result.good] == []
    assert len(results) == len(all_checks())


@pytest.mark.parametrize("outcome", ["unsupported", "not-run"])
def test_what_is_not_passed_is_what_is_expected(results: list[Any], backend: str, outcome: str) -> None:
    assert sorted(result.id for result in results if result.outcome == outcome) == EXPECTED[backend][outcome]
