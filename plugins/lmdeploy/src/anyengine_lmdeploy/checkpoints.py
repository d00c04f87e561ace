"""The quantised checkpoints that each of LMDeploy's two engines loads.

TurboMind's after ``turbomind/converter.py`` of 0.18.0 (what it asserts, and its table of group sizes); its kernels are
there from compute capability 7.0 (``src/turbomind/kernels/gemm/kernel/sm70_884_*.cu``). Those of the engine in PyTorch
after ``pytorch/config.py`` (``QuantizationConfig``) and ``pytorch/nn/linear``; its kernels are in Triton, which is for
8.0 and later, and has e4m3 from 8.9. There compressed-tensors are for mixtures of experts alone, which the declaration
cannot say: they are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.backend import CheckpointSupport, QuantizedFormat

if TYPE_CHECKING:
    from anyengine_lmdeploy.options import BackendName

__all__ = ["CHECKPOINTS", "checkpoints"]

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
