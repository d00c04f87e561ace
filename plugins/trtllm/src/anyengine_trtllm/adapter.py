"""What an adapter's files say, against what TensorRT-LLM's loader takes of them (``lora_manager.py``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from anyengine.backend.adapters import check_adapter_rank, check_adapter_settings, read_adapter
from anyengine.errors import ModelNotFound

from anyengine_trtllm.checks import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["check_adapter", "widest"]

#: What PEFT writes of an adapter, and the loader passes over or does not get through. It scales every module by
#: ``lora_alpha`` and its own rank, takes magnitudes of DoRA for normalised ones, and leaves out what is no pair of
#: low-rank matrices.
_IGNORED = (
    "alpha_pattern",
    "alora_invocation_tokens",
    "bias",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)

#: Modules whose weights the loader leaves out without a word.
_LEFT_OUT = frozenset({"embed_tokens", "lm_head"})


def check_adapter(name: str, folder: Path, max_rank: int, taken: frozenset[str] = frozenset()) -> None:
    """Hold an adapter, before its weights are read, against what is honoured.

    Args:
        name: what requests call it.
        folder: of the adapter.
        max_rank: of the configuration.
        taken: names of the modules that adapters of this engine may change; any where that is empty.

    Raises:
        UnsupportedParameter, ModelNotFound: names ``lora.adapters.NAME``.
    """
    check_adapter_rank(name, folder, max_rank)
    check_adapter_settings("TensorRT-LLM", name, folder, _IGNORED)
    changed = _changed(name, folder)
    left_out = changed & _LEFT_OUT or (changed - taken if taken else frozenset[str]())
    if left_out:
        raise unsupported(
            f"lora.adapters.{name}",
            f"TensorRT-LLM would leave out what it changes of {', '.join(sorted(left_out))}: it takes linear layers "
            "only, and only those that an adapter which the engine is loaded with changes",
            taken,
        )


def widest(folders: Mapping[str, Path]) -> tuple[str, frozenset[str]]:
    """The adapter to load with: from its weights TensorRT-LLM learns which modules adapters change.

    Args:
        folders: name of each adapter → its folder; at least one.

    Returns:
        Its name, and the modules; none if its files do not say.

    Raises:
        UnsupportedParameter: there is none that changes all that the others do.
    """
    changed = {name: _changed(name, folder) for name, folder in folders.items()}
    every = frozenset[str]().union(*changed.values())
    for name, modules in changed.items():
        if modules == every:
            return name, modules
    raise unsupported(
        "lora.adapters",
        f"none changes all modules that the others do ({', '.join(sorted(every))}), and TensorRT-LLM takes of each "
        "only those that one of them has; load an engine for each kind",
    )


def _changed(name: str, folder: Path) -> frozenset[str]:
    """Names of the modules that it has matrices for, such as ``q_proj``."""
    try:
        with (folder / "adapter_model.safetensors").open("rb") as file:
            header = cast("dict[str, Any]", json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    except FileNotFoundError:
        # In another format; what it was trained with says the same, if it is a list.
        targets: object = read_adapter(name, folder).get("target_modules")
        listed = cast("list[object]", targets) if isinstance(targets, list) else []
        return frozenset(str(target).rpartition(".")[2] for target in listed)
    except (OSError, ValueError, OverflowError) as error:
        raise ModelNotFound(f"{folder} cannot be read: {error}", field=f"lora.adapters.{name}") from error
    return frozenset(key.partition(".lora_")[0].rpartition(".")[2] for key in header if ".lora_" in key)
