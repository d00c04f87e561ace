"""Low-rank adapters, held against what TGI 3.3.7 makes of them: what it does not get through is no error there.

After ``adapters/lora.py`` (``prepare_weights``) and ``utils/adapter.py`` of its server, and those of its models that
have layers for adapters (``models/custom_modeling``, ``TensorParallelMultiAdapterLinear``).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from anyengine.backend.adapters import (
    check_adapter_rank,
    check_adapter_settings,
    check_adapters_in_one_batch,
    read_adapter,
)
from anyengine.errors import ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["lora_adapters"]

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_USUAL = _ATTENTION | {"gate_proj", "up_proj", "down_proj"}
#: ``model_type`` → modules that an adapter may change; in other models it changes nothing, without a word.
_MODULES: dict[str, frozenset[str]] = {
    "gemma2": _USUAL,
    "gemma3_text": _USUAL,
    "granite": _USUAL,
    "llama": _USUAL,
    "mistral": _USUAL,
    "phi3": frozenset({"qkv_proj", "o_proj", "down_proj"}),
    "qwen2": _USUAL,
    "starcoder2": _ATTENTION | {"c_fc", "c_proj"},
}
#: Of PEFT's settings, those that TGI does not read (it has ``r``, ``lora_alpha`` and ``use_rslora``).
_IGNORED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)
_WEIGHT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_[AB]\.weight")
#: The kernels' smallest rank on one GPU, and the steps above it (``utils/sgmv.py`` before 3.3).
_LEAST_RANK, _STEP = 8, 16


def lora_adapters(config: EngineConfig, model: ModelFiles) -> str | None:
    """``--lora-adapters``.

    Raises:
        UnsupportedParameter: TGI would compute something else; names ``lora.adapters.NAME``.
        ModelNotFound: an adapter cannot be read; names the same.
    """
    if config.lora is None:
        return None
    for name, folder in model.loras.items():
        if any(sign in f"{name}{folder.absolute()}" for sign in ",=@"):
            raise _refused(name, "TGI's list of adapters has no room for the characters , = @ in names and folders")
        check_adapter_rank(name, folder, config.lora.max_rank)
        check_adapter_settings("TGI", name, folder, _IGNORED)
        _check_weights(name, folder, model.config, config.parallel.tensor)
    check_adapters_in_one_batch("TGI", config.lora)
    return ",".join(f"{name}={folder.absolute()}" for name, folder in model.loras.items()) or None


def _check_weights(name: str, folder: Path, model: dict[str, Any], tensor: int) -> None:
    kind = str(model.get("model_type"))
    allowed = _MODULES.get(kind)
    if allowed is None:
        raise _refused(
            name, f"TGI has no adapters for models of the type {kind}, but for {', '.join(sorted(_MODULES))}"
        )
    layers: defaultdict[str, set[int]] = defaultdict(set)
    for weight in _weights(name, folder):
        found = _WEIGHT.fullmatch(weight)
        if found is None or found[2] not in allowed:
            raise _refused(name, f"TGI leaves {weight} out; of {kind} it takes {', '.join(sorted(allowed))}")
        layers[found[2]].add(int(found[1]))
    for module, those in sorted(layers.items()):
        if len(those) != model.get("num_hidden_layers"):
            raise _refused(name, f"it has {module} of some layers only, and TGI leaves that out altogether")
    rank = int(read_adapter(name, folder)["r"])
    if len(layers) > 1 and (padded := _padded(rank, tensor)) != rank:
        raise _refused(
            name,
            f"its rank is {rank}, which TGI pads to {padded}, and takes for the scale of all kinds of modules but the "
            "first; give an adapter of a rank that it does not pad",
        )


def _padded(rank: int, tensor: int) -> int:
    least = _LEAST_RANK * tensor
    return least if rank <= least else -(-rank // _STEP) * _STEP


def _weights(name: str, folder: Path) -> list[str]:
    """The names of an adapter's tensors, by the headers of its files (https://huggingface.co/docs/safetensors#format)."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except (OSError, ValueError) as error:
            raise ModelNotFound(f"{file} cannot be read: {error}", field=f"lora.adapters.{name}") from error
        names += header.keys() - {"__metadata__"}
    if not names:
        raise _refused(name, f"TGI reads weights from safetensors only, and there are none in {folder}")
    return sorted(names)


def _refused(name: str, message: str) -> UnsupportedParameter:
    field = f"lora.adapters.{name}"
    return UnsupportedParameter(f"{field}: {message}", field=field)
