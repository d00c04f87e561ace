"""The whole conformance suite through the plugin, against the *simulated* TGI that its launcher starts.

Nothing may fail, and what is unsupported is exactly the list in ``unsupported.txt``. It says that the plugin keeps the
uniform API as far as the simulation goes, and nothing about the real engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anyengine_conformance.check import all_checks
from anyengine_conformance.runner import Runner
from anyengine_conformance.settings import read_expected_failures, read_settings

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
def test_the_suite_has_no_failure_and_the_expected_unsupported_checks(launcher: Path, storyteller: Path):
    settings = read_settings(HERE.parent / "conformance-simulated.toml")
    settings.config["model"] = str(storyteller)  # type: ignore[index]
    assert settings.xfails is not None
    runner = Runner(settings, expected=read_expected_failures(settings.xfails))
    try:
        runner.open()
        report = runner.run(all_checks())
    finally:
        runner.close()
    outcomes: dict[str, list[Any]] = {}
    for result in report.results:
        outcomes.setdefault(result.outcome, []).append(result)
    bad = [
        f"{result.id}: {result.outcome}: {result.reason} {result.seen}" for result in report.results if not result.good
    ]
    assert bad == []
    assert [result.id for result in outcomes["unsupported"]] == (HERE / "unsupported.txt").read_text().split()
    assert sorted(result.id for result in outcomes["not-run"]) == [
        "parity.mean-error",
        "quantisation.load-bitsandbytes",
        "quantisation.load-fp8",
        "requests.declared-conflicts",
    ]
    assert len(outcomes["passed"]) >= 190
