"""What this package reads of a checkpoint itself: how it was quantised, and the rank of an adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.errors import ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.hub import ModelFiles

__all__ = ["adapter_rank", "own_quantization"]


def own_quantization(model: ModelFiles) -> str | None:
    """What ModelOpt wrote beside the weights, or what ``config.json`` says."""
    try:
        written: dict[str, Any] = json.loads((model.path / "hf_quant_config.json").read_bytes())
    except FileNotFoundError:
        written = {}
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{model.path}/hf_quant_config.json cannot be read: {error}", field="model") from error
    found = written.get("quantization", {}).get("quant_algo")
    if found is None:
        section: dict[str, Any] = model.config.get("quantization_config") or {}
        found = section.get("quant_algo") or section.get("quant_method")
    return found.lower() if isinstance(found, str) else None


def adapter_rank(name: str, folder: Path, most: int) -> int:
    """Rank of an adapter.

    Raises:
        UnsupportedParameter: it is larger than ``lora.max_rank``.
        ModelNotFound: the folder holds no readable adapter.
    """
    place = f"lora.adapters.{name}"
    file = folder / "adapter_config.json"
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        rank = int(content["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"{file} cannot be read: {type(error).__name__}: {error}", field=place) from error
    if rank > most:
        raise UnsupportedParameter(f"{place}: its rank is {rank}, and lora.max_rank is {most}", field=place)
    return rank
