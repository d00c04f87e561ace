"""What checkpoints say of themselves, and the quantised ones that each of LMDeploy's two engines loads.

TurboMind's after ``turbomind/converter.py`` of 0.18.0 (what it asserts, and its table of group sizes); its kernels are
there from compute capability 7.0 (``src/turbomind/kernels/gemm/kernel/sm70_884_*.cu``). Those of the engine in PyTorch
after ``pytorch/config.py`` (``QuantizationConfig``) and ``pytorch/nn/linear``; its kernels are in Triton, which is for
8.0 and later, and has e4m3 from 8.9. There compressed-tensors are for mixtures of experts alone, which the declaration
cannot say: they are left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from anyengine.backend import CheckpointSupport, QuantizedFormat
from anyengine.backend.model_config import text_config, whole_model
from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.hub import ModelFiles

    from anyengine_lmdeploy.options import BackendName

__all__ = ["CHECKPOINTS", "checkpoints", "not_as_stored", "vocab_size"]

_VOLTA, _AMPERE, _ADA = (7, 0), (8, 0), (8, 9)

_TURBOMIND = (
    QuantizedFormat(
        method="awq",
        format="gemm",
        scheme="int4-awq",
        group_sizes=(128,),
        asymmetric=True,
        minimum_capability=_VOLTA,
    ),
    QuantizedFormat(method="gptq", scheme="int4-gptq", group_sizes=(128,), minimum_capability=_VOLTA),
    QuantizedFormat(
        method="compressed-tensors",
        format="pack-quantized",
        scheme="int4-w4a16",
        group_sizes=(32, 128),
        asymmetric=True,
        minimum_capability=_VOLTA,
    ),
    QuantizedFormat(method="fp8", scheme="fp8-dynamic-block", minimum_capability=_VOLTA),
    QuantizedFormat(method="mxfp4", scheme="mxfp4", group_sizes=(32,), minimum_capability=_VOLTA),
)

_PYTORCH = (
    QuantizedFormat(
        method="awq",
        format="gemm",
        scheme="int4-awq",
        group_sizes=(32, 64, 128),
        asymmetric=True,
        minimum_capability=_AMPERE,
    ),
    QuantizedFormat(method="smooth_quant", scheme="int8-w8a8", minimum_capability=_AMPERE),
    QuantizedFormat(method="smooth_quant", scheme="fp8-dynamic", minimum_capability=_ADA),
    QuantizedFormat(method="fp8", scheme="fp8-dynamic-block", minimum_capability=_ADA),
    QuantizedFormat(method="fp8", scheme="fp8-static", minimum_capability=_ADA),
)

#: By backend.
CHECKPOINTS: dict[BackendName, CheckpointSupport] = {
    "turbomind": CheckpointSupport(formats=_TURBOMIND),
    "pytorch": CheckpointSupport(formats=_PYTORCH),
}


def checkpoints() -> CheckpointSupport:
    """Of both together: what neither loads is refused before one is chosen."""
    return CheckpointSupport(formats=_TURBOMIND + _PYTORCH)


def vocab_size(model: ModelFiles) -> int:
    """Token ids below this can be generated.

    Raises:
        ModelNotFound: the checkpoint does not say.
    """
    size: Any = text_config(model.config).get("vocab_size")
    if not isinstance(size, int):
        raise ModelNotFound(
            f"{model.path / 'config.json'} does not say how many tokens there are (vocab_size)", field="model"
        )
    return size


def not_as_stored(backend: BackendName, config: Mapping[str, Any]) -> str | None:
    """Why a backend that reads a quantised checkpoint's format would not compute what is stored; None if it would.

    Args:
        backend: the one that is to run it.
        config: the contents of its ``config.json``.
    """
    stated: Any = whole_model(config, "quantization_config") or {}
    return _OF_BACKEND[backend](stated, str(stated.get("quant_method")))


def _turbomind(stated: dict[str, Any], method: str) -> str | None:
    """What ``turbomind/converter.py`` looks for in ``quantization_config``, and some toolchains write otherwise."""
    if method == "awq" and stated.get("version") != "gemm":
        return "TurboMind takes awq whose quantization_config says version 'gemm'"
    groups: Any = stated.get("config_groups") or {}
    told = list(groups) == ["group_0"] and groups["group_0"].get("format")
    if method == "compressed-tensors" and not told:
        return "TurboMind takes compressed-tensors with one group, config_groups.group_0, which says its format"
    form = stated.get("checkpoint_format") or "gptq"
    if method == "gptq" and form != "gptq":
        # To each zero point it adds the 1 that the first format leaves out (``GPTQFormat.normalize``).
        return f"TurboMind reads gptq of checkpoint_format 'gptq' only, and this is {form!r}"
    return None


#: Modules that LMDeploy never quantises, by the last part of their name, or that have nothing to do with text.
_NEVER_QUANTISED = re.compile(
    r"(\S*\W)?("
    r"(lm_head|embed\w*|wte|conv1d|in_proj_(a|b|ba)|\w*norm\w*|(\w*_)?(gate|router))"
    r"|(visual|vision\w*|audio\w*|multi_modal_projector|mm_projector|mlp1|mtp)(\.\S*)?"
    r")"
)


def _pytorch(stated: dict[str, Any], method: str) -> str | None:
    """Of fp8 it keeps few models' layers in their own type (``QuantizationConfig.get_quant_method``).

    Most models give their layers no name to be found by, and merged ones (``qkv_proj``) have a name that no list has. A
    layer that is missed is rounded while it is loaded, or without a scale where scales are stored.
    """
    if method != "fp8":
        return None
    kept: Any = stated.get("ignored_layers") or stated.get("modules_to_not_convert") or ()
    missed = [name for name in map(str, kept) if not _NEVER_QUANTISED.fullmatch(name)]
    return f"LMDeploy's engine in PyTorch would take {missed[0]} for fp8, which it is not" if missed else None


_OF_BACKEND = {"turbomind": _turbomind, "pytorch": _pytorch}
