"""The quantised checkpoints that transformers computes as they say, in float32, with the packages that are pinned.

That is compressed-tensors, which puts what a kernel would compute into float: weights, and activations rounded as the
checkpoint says. Tests hold each scheme against that arithmetic, written out. Its scales of 8-bit activations are a
127.5th of the largest, where kernels, and the reference engine, take a 127th.

Others are refused: for GPTQ, AWQ and bitsandbytes transformers needs packages that are not pinned, and mostly a GPU;
fp8 and mxfp4 of its own it computes from bfloat16 where there is no GPU, and leaves activations alone.
"""

from __future__ import annotations

from importlib.util import find_spec

from anyengine.backend import CheckpointSupport, QuantizedFormat

__all__ = ["FORMATS", "checkpoints"]

FORMATS = tuple(
    QuantizedFormat(method="compressed-tensors", format=form, scheme=scheme)
    for form, scheme in (
        ("pack-quantized", "int4-w4a16"),
        ("pack-quantized", "int8-w8a16"),
        ("int-quantized", "int8-w8a8"),
        ("float-quantized", "fp8-dynamic"),
        ("float-quantized", "fp8-static"),
    )
)


def checkpoints() -> CheckpointSupport:
    """Of the packages that are installed here; imports none of them."""
    return CheckpointSupport(formats=FORMATS if find_spec("compressed_tensors") else ())
