"""Engines for the tests: vLLM itself where it is installed, and adapters and models that are made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
MODELS = TESTS.parents[1] / "reference" / "src" / "anyengine_reference" / "models"


def pytest_configure(config: pytest.Config) -> None:
    # A load that fails within vLLM's constructor leaves a context of ZeroMQ that nobody can reach to close.
    config.addinivalue_line("filterwarnings", "ignore:Unclosed context:ResourceWarning")
    # The same for what is collected after the last test.
    warnings.filterwarnings("ignore", "Unclosed context", ResourceWarning)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def place(place_of: Any) -> dict[str, Any]:
    """Where vLLM runs: in a worker of the environment that ``--vllm`` names, or for ``--vllm=here`` in this process."""
    return place_of("vllm")


@pytest.fixture(scope="session")
def small(place: dict[str, Any], changes_of: Any) -> dict[str, Any]:
    """Configuration for a small machine: not compiled, a small cache, exact weights; or as ``--vllm-config`` says."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    changes = changes_of("vllm")
    return {**place, "execution": "eager", "dtype": "float32", "kv_cache": {"capacity_tokens": 8192}, **changes}


@pytest.fixture(scope="session")
def rounding(small: dict[str, Any]) -> float:
    """Nats by which one distribution may differ, computed in two ways; for bf16 as the conformance suite caps it."""
    return 1e-4 if small["dtype"] == "float32" else 0.25


@pytest.fixture(scope="session")
def storyteller() -> Path:
    return MODELS / "storyteller"


@pytest.fixture(scope="session")
def draft() -> Path:
    return MODELS / "storyteller-draft"


@pytest.fixture(scope="session")
def contracts() -> dict[str, dict[str, Any]]:
    """Facts about vLLM's interface by version, made by ``tools/make_vllm_contract.py``."""
    return {file.stem: json.loads(file.read_bytes()) for file in sorted((TESTS / "contract").glob("*.json"))}


@pytest.fixture
def changed(tmp_path: Path) -> Any:
    """Copies a checkpoint, with other values in its configuration: ``changed(folder, name=value)``."""

    def make(folder: Path, **values: Any) -> str:
        copy = tmp_path / "model"
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | values))
        return str(copy)

    return make


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a random low-rank adapter of the storyteller: ``make_adapter(seed, rank=4)``."""

    def make(seed: int, rank: int = 4, scale: float = 0.5) -> Path:
        import numpy as np
        from safetensors.numpy import save_file

        folder = tmp_path_factory.mktemp("adapter")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "storyteller",
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        random = np.random.default_rng(seed)
        tensors = {}
        for layer in range(4):
            for name, width in (("q_proj", 256), ("v_proj", 128)):
                prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                tensors[f"{prefix}.lora_A.weight"] = scale * random.standard_normal((rank, 256), dtype=np.float32)
                tensors[f"{prefix}.lora_B.weight"] = scale * random.standard_normal((width, rank), dtype=np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make
