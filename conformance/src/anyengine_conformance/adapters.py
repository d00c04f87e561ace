"""Low-rank adapters of any checkpoint, made on the spot, and the same model with one merged into its weights.

The suite has no adapter of the subject's model, so it draws one, in the format of PEFT: for each query and value
projection W (out x in) matrices A (rank x in) and B (out x rank), so that W + alpha / rank * B A is the adapted one
(Hu et al. 2021, LoRA, section 4.1). The merged checkpoint is then an ordinary one, and the oracle scores it exactly.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine_reference.model.checkpoint import Checkpoint, tensors_of, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RANK", "make_adapter", "merge"]

RANK = 8
_ALPHA = 16
_TARGETS = ("q_proj", "v_proj")
_PREFIX = "base_model.model."
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
#: Frobenius norm of what an adapter adds, by that of the weights: enough to change what the model says, and no noise.
_STRENGTH = 0.5

Array = np.ndarray[Any, np.dtype[np.float32]]


def make_adapter(checkpoint: Path, folder: Path, seed: int) -> bool:
    """Draw an adapter of a checkpoint.

    Args:
        checkpoint: folder of the model.
        folder: to make.
        seed: of what is drawn.

    Returns:
        Whether the model has projections of the names that the adapter changes; if not, nothing was made.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name in _targets(checkpoint):
        weights = Checkpoint(checkpoint)[name].float32()
        out, width = weights.shape
        down = (rng.standard_normal((RANK, width)) / np.sqrt(width)).astype(np.float32)
        up = rng.standard_normal((out, RANK)).astype(np.float32)
        up *= _STRENGTH * np.linalg.norm(weights) / np.linalg.norm(up @ down * (_ALPHA / RANK))
        module = _PREFIX + name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    if not tensors:
        return False
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "r": RANK,
        "lora_alpha": _ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(_TARGETS),
    }
    (folder / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
    _write(folder / _ADAPTER, tensors)
    return True


def merge(checkpoint: Path, adapter: Path, folder: Path) -> None:
    """Write the checkpoint with the adapter in its weights, in float32.

    Args:
        checkpoint: folder of the model.
        adapter: folder that :func:`make_adapter` made for it.
        folder: to make.
    """
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    changes = {tensor.name: tensor.float32() for tensor in tensors_of(adapter / _ADAPTER)}
    tensors: dict[str, Array] = {}
    for name, tensor in Checkpoint(checkpoint).items():
        tensors[name] = tensor.float32()
        module = _PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in changes:
            down, up = changes[f"{module}.lora_A.weight"], changes[f"{module}.lora_B.weight"]
            tensors[name] = (tensors[name] + scale * (up @ down)).astype(np.float32)
    _write(folder / "model.safetensors", tensors)


def _targets(checkpoint: Path) -> list[str]:
    try:
        names = list(Checkpoint(checkpoint))
    except ValueError:  # no weights that could be read
        return []
    return [name for name in names if name.endswith(tuple(f"self_attn.{target}.weight" for target in _TARGETS))]


def _write(file: Path, tensors: dict[str, Array]) -> None:
    write_safetensors(file, {name: ("F32", array.shape) for name, array in tensors.items()}, tensors.values())
