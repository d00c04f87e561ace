"""Tiny random models, and a way to step the engine by hand: no thread, no event loop, nothing left to chance."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine.testing import make_model_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from anyengine_reference.model import Model


def _module(path: Path) -> ModuleType:
    """Test folders are not packages: their helpers are loaded by path."""
    specification = importlib.util.spec_from_file_location(f"anyengine_reference_tests_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    return _module(Path(__file__).parent / "model" / "checkpoints.py")


@pytest.fixture(scope="session")
def driving() -> ModuleType:
    """The module ``driving.py``."""
    return _module(Path(__file__).parent / "driving.py")


@pytest.fixture(scope="session")
def statistics() -> ModuleType:
    """The module ``statistics.py``."""
    return _module(Path(__file__).parent / "statistics.py")


@pytest.fixture(scope="session")
def tiny_model(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Makes a random model, once for the same arguments: ``tiny_model(vocab_size=12, seed=1)``."""
    from anyengine_reference.model import load_model

    made: dict[str, Model] = {}

    def make(**options: Any) -> Model:
        key = str(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny")
            made[key] = load_model(checkpoints.random_checkpoint(folder, "llama", dtype="F32", **options))
        return made[key]

    return make


@pytest.fixture(scope="session")
def model_folder(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a random checkpoint whose tokens are single bytes, with a tokenizer: what ``Engine.load`` takes."""

    def make(**options: Any) -> Path:
        folder = make_model_folder(tmp_path_factory.mktemp("folder"))
        defaults = {"vocab_size": 259, "eos_token_id": 256, "dtype": "F32", "max_position_embeddings": 256}
        return checkpoints.random_checkpoint(folder, **{"family": "llama", **defaults, **options})

    return make


@pytest.fixture(scope="session")
def bytes_folder(model_folder: Callable[..., Path]) -> Path:
    """One such checkpoint, shared by tests that only read it."""
    return model_folder()


@pytest.fixture
def settle() -> Callable[..., Any]:
    """Lets the event loop turn until a condition holds; the test's timeout is the bound."""

    async def turn(condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 a thread's end sets no event
            await asyncio.sleep(0)

    return turn
