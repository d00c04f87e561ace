"""A simulated LMDeploy for the tests; and, on a GPU, LMDeploy itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

TESTS = Path(__file__).parent
SIMULATION = TESTS / "simulated_lmdeploy"
MODELS = TESTS.parents[1] / "reference" / "src" / "anyengine_reference" / "models"


def _module(file: Path) -> ModuleType:
    """Test folders are not packages: their helpers are loaded by path."""
    name = f"anyengine_lmdeploy_tests_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
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
    """Of LMDeploy's interface, made by ``tools/make_lmdeploy_contract.py``."""
    return json.loads((TESTS / "contract" / "0.18.0.json").read_bytes())


@pytest.fixture(scope="session")
def contract_tool() -> ModuleType:
    """The script that makes the facts."""
    return _module(TESTS.parent / "tools" / "make_lmdeploy_contract.py")


@pytest.fixture(scope="session")
def decisions() -> ModuleType:
    """The module ``decisions.py``."""
    return _module(TESTS / "decisions.py")


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    """The module ``scripted_lite.py``."""
    return _module(TESTS / "scripted_lite.py")


@pytest.fixture(scope="module")
def importable() -> Iterator[pytest.MonkeyPatch]:
    """``import lmdeploy`` gives the simulation as long as this lasts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(SIMULATION))
        yield monkeypatch
        for name in [name for name in sys.modules if name.partition(".")[0] == "lmdeploy"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def simulated(importable: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The plugin takes the simulation for LMDeploy; this is its module ``lmdeploy.messages``."""
    from anyengine_lmdeploy.library import load_library
    from lmdeploy import messages
    from lmdeploy.simulation.install import install

    install(importable)
    yield messages
    load_library.cache_clear()


@pytest.fixture(scope="session")
def storyteller() -> Path:
    return MODELS / "storyteller"


@pytest.fixture(scope="session")
def wide(storyteller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with 768 in place of 704 inputs of its widest matrices, the new ones zeros: groups of 128 fit."""
    import numpy as np
    from anyengine_reference.model.checkpoint import Checkpoint, write_safetensors

    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(storyteller, folder)
    config = json.loads((folder / "config.json").read_text())
    more = 768 - config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 768}))
    axes = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    layout, arrays = {}, []
    for name, tensor in Checkpoint(storyteller).items():
        axis = axes.get(name.split(".")[-2])
        pad = [(0, more if number == axis else 0) for number in range(len(tensor.shape))]
        arrays.append(np.pad(tensor.data(), pad))
        layout[name] = (tensor.dtype, arrays[-1].shape)
    write_safetensors(folder / "model.safetensors", layout, arrays)
    return folder


@pytest.fixture(scope="session")
def draft() -> Path:
    return MODELS / "storyteller-draft"


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A checkpoint that nobody reads."""
    from anyengine.hub import ModelFiles

    (tmp_path / "m").mkdir()
    return ModelFiles(
        name="m",
        path=tmp_path / "m",
        tokenizer_path=tmp_path / "m",
        config={
            "dtype": "bfloat16",
            "head_dim": 64,
            "hidden_size": 256,
            "intermediate_size": 768,
            "max_position_embeddings": 1024,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 4096,
        },
        eos_token_ids=frozenset({2}),
    )


# -- LMDeploy itself --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["turbomind", "pytorch"])
def real(request: pytest.FixtureRequest, place_of: Any, changes_of: Any) -> dict[str, Any]:
    """Configuration of an engine on a GPU: in a worker of the environment that ``--lmdeploy`` names."""
    native = {"backend": request.param}
    share = {"gpu_memory_fraction": 0.2}
    return {**place_of("lmdeploy"), "dtype": "bfloat16", "kv_cache": share, "native": native, **changes_of("lmdeploy")}


@pytest.fixture
def real_pytorch(place_of: Any, changes_of: Any) -> dict[str, Any]:
    """The same, of the PyTorch backend; not compiled, so that it is up soon."""
    fields = {"dtype": "bfloat16", "kv_cache": {"capacity_tokens": 65536}, "execution": "eager"}
    return {**place_of("lmdeploy"), **fields, "native": {"backend": "pytorch"}, **changes_of("lmdeploy")}
