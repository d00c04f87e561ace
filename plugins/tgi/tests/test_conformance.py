"""The whole conformance suite through the plugin, against the *simulated* TGI that its launcher starts.

Nothing may fail, and what is unsupported is exactly the list in ``unsupported.txt``. It says that the plugin keeps the
uniform API as far as the simulation goes, and nothing about the real engine.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine_conformance.check import all_checks
from anyengine_conformance.runner import Runner
from anyengine_conformance.settings import read_expected_failures, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyengine_conformance.results import Report

HERE = Path(__file__).parent
#: What the suite cannot say of the simulation, of the model that it has.
NOT_RUN = [
    "parity.mean-error",
    "quantisation.load-bitsandbytes",
    "quantisation.load-fp8",
    "requests.declared-conflicts",
]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def outcomes(launcher: Path, monkeypatch: pytest.MonkeyPatch, keep_report: Callable[[Report], None]):
    """``outcomes(checks, **configuration)``: the ids of the checks by outcome, none of which may be bad."""
    monkeypatch.chdir(HERE.parents[2])  # the settings name the model from there

    def run(checks: Sequence[Any], **config: Any) -> dict[str, list[str]]:
        settings = read_settings(HERE.parent / "conformance-simulated.toml")
        settings = replace(settings, config={**settings.config, **config})
        assert settings.xfails is not None
        runner = Runner(settings, expected=read_expected_failures(settings.xfails))
        try:
            runner.open()
            report = runner.run(checks)
        finally:
            runner.close()
        results = report.results
        if report.suite.complete:
            keep_report(report)
        assert [f"{each.id}: {each.outcome}: {each.reason} {each.seen}" for each in results if not each.good] == []
        found: dict[str, list[str]] = defaultdict(list)
        for result in results:
            found[result.outcome].append(result.id)
        return found

    return run


def test_the_suite_has_no_failure_and_the_expected_unsupported_checks(outcomes: Any):
    found = outcomes(all_checks())
    assert found["unsupported"] == (HERE / "unsupported.txt").read_text().split()
    assert sorted(found["not-run"]) == NOT_RUN
    # Whatever is not in one of the lists passed.
    assert found["xfailed"] == ["adapters.side-by-side"]
    assert sorted(found) == ["not-run", "passed", "unsupported", "xfailed"]


def test_prompts_have_log_probabilities_where_the_server_was_started_for_them(outcomes: Any):
    given = [made for made in all_checks() if {"prompt_logprobs", "score"} & set(made.needs)]
    assert outcomes(given, native={"enable_prefill_logprobs": True}) == {
        "passed": [
            "knobs.prompt-logprobs-on-request",
            "logprobs.prompt-is-aligned",
            "logprobs.prompt-is-the-models",
            "logprobs.prompt-has-alternatives",
            "logprobs.prompt-cached-or-not",
            "logprobs.prompt-in-streams",
            "logprobs.score-is-aligned",
            "logprobs.score-is-the-models",
        ],
        "unsupported": ["logprobs.score-agrees-with-generate"],  # needs prompts of token ids
    }
