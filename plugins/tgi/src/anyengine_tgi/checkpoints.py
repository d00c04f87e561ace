"""The quantised checkpoints that Text Generation Inference 3.3.7 loads on CUDA; declared by contract, never run.

After ``utils/quantization.py`` (which loader), ``layers/compressed_tensors``, ``layers/marlin`` (its group sizes, from
compute capability 8.0), ``layers/gptq`` and ``layers/fp8.py``. TGI only warns of a method that it does not know, and
takes the weights for plain ones: all the more reason to refuse it here. Left out, though there is code for it:

- compressed-tensors with zero points: they reach the kernel as they are stored, and not as Marlin orders them;
- the element type of the cache: a checkpoint's is taken with one of three kinds of attention, and else ignored;
- fp8 in blocks below 9.0, where the Marlin kernel is not told of the blocks;
- AWQ on 7.5, where it depends on a package whether there is a kernel.

Static scales of activations are read, and not used on CUDA: TGI finds scales for each token while running, or leaves
activations in float (fp8 below 9.0). That is nearer to the float model.
"""

from __future__ import annotations

from anyengine.backend import CheckpointSupport, QuantizedFormat

__all__ = ["CHECKPOINTS"]

_COMPRESSED = "compressed-tensors"
#: Marlin's (``GPTQ_MARLIN_GROUP_SIZES``); 0 is a scale of a whole row.
_GROUPS = (0, 32, 64, 128)
_TURING, _AMPERE, _HOPPER = (7, 5), (8, 0), (9, 0)

CHECKPOINTS = CheckpointSupport(
    formats=(
        QuantizedFormat(
            method="awq",
            format="gemm",
            scheme="int4-awq",
            group_sizes=_GROUPS,
            asymmetric=True,
            minimum_capability=_AMPERE,
        ),
        # Without Marlin exllama or Triton run it, on the oldest GPU that TGI is for (T4).
        QuantizedFormat(
            method="gptq",
            scheme="int4-gptq",
            group_sizes=_GROUPS,
            asymmetric=True,
            reordered=True,
            minimum_capability=_TURING,
        ),
        QuantizedFormat(
            method="gptq", scheme="int8-gptq", group_sizes=_GROUPS, reordered=True, minimum_capability=_AMPERE
        ),
        QuantizedFormat(method="marlin", scheme="int4-marlin", group_sizes=(0, 128), minimum_capability=_AMPERE),
        QuantizedFormat(method="exl2", scheme="exl2", minimum_capability=_TURING),
        *(
            QuantizedFormat(
                method=_COMPRESSED,
                format="pack-quantized",
                scheme=scheme,
                group_sizes=_GROUPS,
                reordered=True,
                minimum_capability=_AMPERE,
            )
            for scheme in ("int4-w4a16", "int8-w8a16")
        ),
        *(
            QuantizedFormat(method=_COMPRESSED, format=form, scheme=scheme, minimum_capability=minimum)
            for form, scheme, minimum in (
                ("int-quantized", "int8-w8a8", _TURING),
                ("int-quantized", "int8-w8a8-static", _TURING),
                ("float-quantized", "fp8-dynamic", _AMPERE),
                ("float-quantized", "fp8-static", _AMPERE),
            )
        ),
        *(
            QuantizedFormat(method="fp8", scheme=scheme, minimum_capability=minimum)
            for scheme, minimum in (
                ("fp8-dynamic", _AMPERE),
                ("fp8-static", _AMPERE),
                ("fp8-dynamic-block", _HOPPER),
            )
        ),
    )
)
