"""A checkpoint folder in, a model out."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint, read_json
from .config import ModelConfig
from .llama import Model

__all__ = ["load_model"]


def load_model(folder: Path, *, quantization: str | None = None) -> Model:
    """Load the Hugging Face checkpoint in `folder`."""
    config = read_json(folder / "config.json")
    return Model(ModelConfig.from_dict(config), Checkpoint(folder))
