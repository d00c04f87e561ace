"""The whole suite through this plugin, against the *simulated* TensorRT-LLM: it says nothing of the engine itself."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine_conformance import Settings
from anyengine_conformance.check import all_checks
from anyengine_conformance.progress import details
from anyengine_conformance.runner import Runner
from anyengine_conformance.subject import PluginTarget
from anyengine_trtllm import plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine_conformance.results import Report

ROOT = Path(__file__).parents[3]
#: What the suite cannot say of the simulation: exactly these, no more and no fewer.
EXPECTED = json.loads((Path(__file__).parent / "expected_outcomes.json").read_bytes())

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("simulated")]


def _run(model: Path | str, checks: Any, variants: dict[str, Any] | None = None) -> Report:
    settings = Settings(
        engine="trtllm",
        config={"model": str(model), "isolation": "none"},
        time_factor=6.0,
        variants=variants or {},
        simulated=True,
    )
    with chdir(ROOT):  # where the names of models in the report lead from
        runner = Runner(settings, target=PluginTarget(plugin))
        try:
            runner.open()
            return runner.run(checks)
        finally:
            runner.close()


@pytest.fixture(scope="module")
def results(simulated: Any, storyteller: Path, draft: Path, keep_report: Callable[[Report], None]) -> list[Any]:
    # The small model for the large one, and the reverse as its draft: to the mapping it is all the same, and the
    # statistics are of thousands of draws, which cost half as much so.
    target, drafter = (str(folder.relative_to(ROOT)) for folder in (draft, storyteller))
    drafted = {"method": "draft_model", "model": drafter, "num_speculative_tokens": 4}
    report = _run(target, all_checks(), {"draft-model": {"speculative": drafted}})
    keep_report(report)
    return report.results


def test_no_check_fails(results: list[Any]) -> None:
    bad = ["\n".join(details(result)) for result in results if not result.good]
    assert bad == [], "\n".join(bad)
    assert len(results) == len(all_checks())


@pytest.mark.parametrize("outcome", ["unsupported", "not-run"])
def test_what_is_not_passed_is_what_is_expected(results: list[Any], outcome: str) -> None:
    assert sorted(result.id for result in results if result.outcome == outcome) == EXPECTED[outcome]


@pytest.fixture
def single_ended(storyteller: Path, tmp_path: Path) -> Path:
    """The storyteller with one end-of-sequence token: where TensorRT-LLM can hold the end back."""
    folder = Path(shutil.copytree(storyteller, tmp_path / "storyteller"))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_bytes())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": 2}))
    tokens = json.loads((folder / "tokenizer_config.json").read_bytes())
    vocabulary = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
    end = next(entry["content"] for entry in vocabulary if entry["id"] == 2)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"eos_token": end}))
    return folder


def test_with_one_end_min_tokens_holds(single_ended: Path) -> None:
    checks = [made for made in all_checks() if "request.min_tokens" in made.needs and made.variant == "default"]
    results = _run(single_ended, checks).results
    assert ["\n".join(details(result)) for result in results if not result.good] == []
    assert {result.id: result.outcome for result in results} == EXPECTED["with-one-end"]
