"""Options and fixtures that every package's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options of tests that need more than this package."""
    text = "also run the tests that compare with torch and transformers"
    parser.addoption("--oracle", action="store_true", help=text)
    text = "also run the tests of vLLM itself, in workers of this environment of `anyengine env` [vllm-cpu]"
    parser.addoption("--vllm", nargs="?", const="vllm-cpu", metavar="ENVIRONMENT", help=text)
    text = "fields of EngineConfig, as JSON, that the tests of vLLM load it with: dtype and execution, say"
    parser.addoption("--vllm-config", default="{}", metavar="JSON", help=text)
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without their option these are deselected, and pytest says how many; with it what is missing is a failure."""
    off = {name for name in ("gpu", "oracle", "vllm") if not config.getoption(f"--{name}")}
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in off)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct."""
    folder = Path(os.environ.get("ANYENGINE_TEST_SMOLLM2", ROOT / ".cache" / "SmolLM2-135M-Instruct"))
    if not (folder / "tokenizer.json").exists():
        pytest.fail("SmolLM2-135M-Instruct is missing: run `uv run python tools/fetch_smollm2.py`")
    return folder
