import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from anyengine_reference.model import Model, load_model


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The module ``checkpoints.py``: test folders are not packages."""
    specification = importlib.util.spec_from_file_location(
        "anyengine_reference_test_checkpoints", Path(__file__).with_name("checkpoints.py")
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a random tiny checkpoint: ``random_checkpoint("qwen3", seed=1, dtype="F32", head_dim=20)``."""

    def make(family: str = "llama", **options: Any) -> Path:
        return checkpoints.random_checkpoint(tmp_path_factory.mktemp(family), family, **options)

    return make


@pytest.fixture(scope="session")
def random_model(random_checkpoint: Callable[..., Path]) -> Callable[..., Model]:
    """Makes a model of random weights, once for the same arguments."""
    made: dict[str, Model] = {}

    def make(family: str = "llama", **options: Any) -> Model:
        key = f"{family} {sorted(options.items())}"
        if key not in made:
            made[key] = load_model(random_checkpoint(family, **options))
        return made[key]

    return make
