"""What this package reads of a checkpoint itself: how it was quantised."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from anyengine.hub import ModelFiles

__all__ = ["own_quantization"]


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
