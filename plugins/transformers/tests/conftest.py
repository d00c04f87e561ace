"""Tiny random checkpoints of any architecture, made with transformers, and engines of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from anyengine import Engine
from anyengine.testing import make_model_folder
from anyengine_transformers import plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What has no longest text, or does not say.
ENDLESS = {"BloomConfig", "MambaConfig"}
#: What most architectures call their sizes.
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a random checkpoint whose tokens are single bytes: ``checkpoint("LlamaConfig", num_hidden_layers=1)``."""
    made: dict[str, Path] = {}

    def make(kind: str = "LlamaConfig", **options: Any) -> Path:
        import torch
        import transformers

        key = f"{kind} {sorted(options.items())}"
        if key not in made:
            sizes = {name: size for name, size in SIZES.items() if kind not in ENDLESS or name[:3] != "max"}
            config = getattr(transformers, kind)(**{**sizes, "initializer_range": 0.3, **options})
            folder = make_model_folder(tmp_path_factory.mktemp("checkpoint"))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def load(checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """Loads an engine of a random checkpoint, or of another folder: ``load(max_model_len=64)``."""

    def begin(folder: Path | None = None, **config: Any) -> Any:
        return Engine.load(plugin, str(folder or checkpoint()), isolation="none", **config)

    return begin


@pytest.fixture(scope="session")
def direct() -> Callable[..., Any]:
    """The model as transformers loads it, and as plainly as it can be called: token ids to logits [length, vocab]."""

    def open_model(folder: Path, **options: Any) -> Callable[[list[int]], Any]:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()

        def logits(token_ids: list[int]) -> Any:
            with torch.inference_mode():
                return model(torch.tensor([token_ids])).logits[0].double()

        return logits

    return open_model
