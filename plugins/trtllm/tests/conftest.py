"""A simulated TensorRT-LLM for the tests; the engine itself was never run with this package."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine import Engine
from anyengine_trtllm import plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

TESTS = Path(__file__).parent
MODELS = TESTS.parents[1] / "reference" / "src" / "anyengine_reference" / "models"


def _module(path: Path) -> ModuleType:
    """Test folders are not packages: their helpers are loaded by path."""
    file = path / "__init__.py" if path.is_dir() else path
    folders = [str(path)] if path.is_dir() else None
    name = f"anyengine_trtllm_tests_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    """Of TensorRT-LLM's interface, made by ``tools/make_trtllm_contract.py``."""
    return json.loads((TESTS / "contract" / "1.2.1.json").read_bytes())


@pytest.fixture(scope="session")
def contract_tool() -> ModuleType:
    """The script that makes the facts."""
    return _module(TESTS.parent / "tools" / "make_trtllm_contract.py")


@pytest.fixture(scope="session")
def scripted_modelopt() -> ModuleType:
    """The module ``scripted_modelopt.py``."""
    return _module(TESTS / "scripted_modelopt.py")


@pytest.fixture(scope="session")
def simulation() -> ModuleType:
    """The package ``simulated_tensorrt_llm``."""
    return _module(TESTS / "simulated_tensorrt_llm")


@pytest.fixture(scope="session")
def simulated(simulation: ModuleType, facts: dict[str, Any]) -> Iterator[Any]:
    """TensorRT-LLM is simulated as long as this lasts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield simulation.install(monkeypatch, facts)


@pytest.fixture(scope="session")
def storyteller() -> Path:
    return MODELS / "storyteller"


@pytest.fixture(scope="session")
def draft() -> Path:
    return MODELS / "storyteller-draft"


@pytest.fixture(scope="session")
def decisions() -> ModuleType:
    """The module ``decisions.py``."""
    return _module(TESTS / "decisions.py")


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A checkpoint that nobody reads."""
    from anyengine.hub import ModelFiles

    return ModelFiles(
        name="m",
        path=tmp_path / "m",
        tokenizer_path=tmp_path / "t",
        config={"vocab_size": 4096, "max_position_embeddings": 1024},
        eos_token_ids=frozenset({2}),
    )


@pytest.fixture
def arguments(simulated: Any, model: Any) -> Any:
    """``arguments(config fields)``: what ``LLM`` is made with."""
    from anyengine import EngineConfig
    from anyengine_trtllm.checks import check_config
    from anyengine_trtllm.config import engine_arguments
    from anyengine_trtllm.library import load_library
    from anyengine_trtllm.options import parse_options

    def make(files: Any = model, /, **fields: Any) -> dict[str, Any]:
        config = EngineConfig(**fields)
        options = parse_options(config)
        check_config(config, options)
        return engine_arguments(config, files, options, load_library(tensorrt=options.tensorrt))

    return make


@pytest.fixture(scope="session")
def trtllm_serve() -> ModuleType:
    """The module ``simulated_trtllm_serve.py``."""
    return _module(TESTS / "simulated_trtllm_serve.py")


@pytest.fixture
def load(simulated: object, storyteller: Path) -> Callable[..., Any]:
    """``load(config fields)``: an engine, to be entered."""

    def make(**fields: Any) -> Any:
        return Engine.load(plugin, str(storyteller), isolation="none", **fields)

    return make
