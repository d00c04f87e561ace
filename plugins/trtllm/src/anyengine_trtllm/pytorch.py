"""The PyTorch backend runs a checkpoint as it is: fields that would change it can only say again what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.backend.dtypes import own_dtype

from anyengine_trtllm.checkpoint import own_quantization
from anyengine_trtllm.checks import unsupported

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["check_checkpoint", "stored_dtype"]


def stored_dtype(model: ModelFiles) -> str:
    """What it computes in: what the checkpoint says (``ModelConfig.torch_dtype``), bfloat16 where that is nothing."""
    return own_dtype(model.config) or "bfloat16"


def check_checkpoint(config: EngineConfig, model: ModelFiles) -> None:
    """Refuse what the backend would not do to this checkpoint.

    Raises:
        UnsupportedParameter: names the field.
    """
    _check_quantization(config, model)
    own = stored_dtype(model)
    if config.dtype not in {"auto", own}:
        # The argument is taken, and read by the other backend only.
        raise unsupported(
            "dtype", f"the PyTorch backend computes in the type that the checkpoint says, {own}", {"auto", own}
        )
    _check_code(config, model)


def _check_quantization(config: EngineConfig, model: ModelFiles) -> None:
    if config.quantization is None:
        return
    own = own_quantization(model)
    if own != config.quantization:
        raise unsupported(
            "quantization",
            f"the PyTorch backend runs a checkpoint as it is, and this one is {own or 'not quantised'}; use one that "
            "ModelOpt has quantised, or native.backend 'tensorrt', which quantises while it builds",
            () if own is None else {own},
        )


def _check_code(config: EngineConfig, model: ModelFiles) -> None:
    """The model loader reads each checkpoint's configuration with code allowed, whatever the argument says."""
    if config.trust_remote_code:
        return
    for name, files in (("model", model), ("speculative.model", model.draft)):
        if files is not None and files.config.get("auto_map"):
            raise unsupported(
                "trust_remote_code",
                f"{name} brings Python code of its own (auto_map in its config.json), which the PyTorch backend runs "
                "without asking; read it, and pass trust_remote_code=True",
            )
