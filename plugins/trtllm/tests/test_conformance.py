"""The whole suite through this plugin, against the *simulated* TensorRT-LLM: it says nothing of the engine itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from anyengine_conformance import Settings
from anyengine_conformance.check import all_checks
from anyengine_conformance.progress import details
from anyengine_conformance.runner import Runner
from anyengine_conformance.subject import PluginTarget
from anyengine_trtllm import plugin

#: What the suite cannot say of the simulation: exactly these, no more and no fewer.
EXPECTED = json.loads((Path(__file__).parent / "expected_outcomes.json").read_bytes())

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("simulated")]


def _run(model: Path, checks: Any, variants: dict[str, Any] | None = None) -> list[Any]:
    settings = Settings(
        engine="trtllm", config={"model": str(model), "isolation": "none"}, time_factor=6.0, variants=variants or {}
    )
    runner = Runner(settings, target=PluginTarget(plugin))
    try:
        runner.open()
        return runner.run(checks).results
    finally:
        runner.close()


@pytest.fixture(scope="module")
def results(simulated: Any, storyteller: Path, draft: Path) -> list[Any]:
    # The small model for the large one, and the reverse as its draft: to the mapping it is all the same, and the
    # statistics are of thousands of draws, which cost half as much so.
    drafted = {"method": "draft_model", "model": str(storyteller), "num_speculative_tokens": 4}
    return _run(draft, all_checks(), {"draft-model": {"speculative": drafted}})


def test_no_check_fails(results: list[Any]) -> None:
    assert ["\n".join(details(result)) for result in results if not result.good] == []
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
    results = _run(single_ended, checks)
    assert ["\n".join(details(result)) for result in results if not result.good] == []
    assert {result.id: result.outcome for result in results} == EXPECTED["with-one-end"]
