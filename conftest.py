"""Options and fixtures that every package's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register ``--oracle``."""
    text = "also run the tests that compare with torch and transformers"
    parser.addoption("--oracle", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--oracle`` its tests are deselected, and pytest says how many; with it a missing torch is a failure."""
    if config.getoption("--oracle"):
        return
    oracle = [item for item in items if "oracle" in item.keywords]
    if oracle:
        config.hook.pytest_deselected(items=oracle)
        items[:] = [item for item in items if "oracle" not in item.keywords]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct."""
    folder = Path(os.environ.get("ANYENGINE_TEST_SMOLLM2", ROOT / ".cache" / "SmolLM2-135M-Instruct"))
    if not (folder / "tokenizer.json").exists():
        pytest.fail("SmolLM2-135M-Instruct is missing: run `uv run python tools/fetch_smollm2.py`")
    return folder
