"""The quantised checkpoints that TensorRT-LLM's PyTorch backend loads; declared by contract, never run.

Kinds and compute capabilities after the hardware matrix of ``features/quantization`` in the documentation of 1.2.1;
which words of a checkpoint are read, after ``_torch/model_config.py`` (``load_modelopt_quant_config``,
``load_hf_quant_config``) and ``_torch/modules/linear.py`` (``get_quant_method``) of 1.2's development: ModelOpt's own
file, fp8 in blocks of 128 by 128 as DeepSeek has it, and mxfp4. What else config.json says of a quantization is passed
over there without a word. SmoothQuant (``W8A8_SQ_PER_CHANNEL``) and GPTQ have no kernel on that backend.

The matrix has holes that a least capability cannot say: on 12.0 only fp8 of whole matrices, NVFP4 and mxfp4 run, and
fp8 by rows runs on 9.0 alone; there the engine refuses by itself.
"""

from __future__ import annotations

from anyengine.backend import CheckpointSupport, QuantizedFormat

__all__ = ["CHECKPOINTS"]

_AMPERE, _ADA, _HOPPER, _BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)
#: Of ``finegrained_mixed_dtype_gemm``.
_GROUPS = (64, 128)
#: An NVFP4 cache has to be asked for, a checkpoint's wish is not enough.
_CACHES = ("fp8",)

CHECKPOINTS = CheckpointSupport(
    formats=(
        *(
            QuantizedFormat(
                method="modelopt",
                scheme=scheme,
                group_sizes=groups,
                kv_cache=_CACHES,
                minimum_capability=minimum,
            )
            for scheme, groups, minimum in (
                ("fp8-static", None, _ADA),
                ("fp8-dynamic", None, _HOPPER),
                ("fp8-dynamic-block", None, _HOPPER),
                ("int4-awq", _GROUPS, _AMPERE),
                ("int4-awq-fp8", _GROUPS, _ADA),
                ("kv-fp8", None, _AMPERE),
                ("nvfp4", (16,), _BLACKWELL),
            )
        ),
        QuantizedFormat(method="fp8", scheme="fp8-dynamic-block", minimum_capability=_HOPPER),
        QuantizedFormat(method="mxfp4", scheme="mxfp4", group_sizes=(32,), minimum_capability=_BLACKWELL),
    )
)
