"""The quantised checkpoints that vLLM loads, by its own tables of kernels.

On GPUs after ``get_min_capability`` and the kernels in ``vllm/model_executor`` of 0.25.1 and 0.32; on a CPU after
``kernels/linear/mixed_precision/cpu.py`` and ``scaled_mm/cpu.py`` of 0.32, which have 4-bit weights and 8-bit weights
with 8-bit activations, no kernel for 8-bit weights alone, and nothing for reordered inputs (``g_idx``).

On x86 processors of fewer instructions the CPU build is another. Without AVX-512 its library has no 4-bit kernel
(``cpu_gemm_wna16``), and the engine's core dies of the first step: ``import_kernels`` in ``platforms/cpu.py``, on the
condition of torch's ``_is_avx512_supported``. Without VNNI oneDNN adds two products of 8 bits in 16, which are not
always enough: seen on an AMD EPYC of the third generation, where ``onednn_scaled_mm`` of 256 times 127 * 127 comes to
less than a hundredth of that, and a checkpoint in int8-w8a8 drifts by more than twice what the rounding costs.
"""

from __future__ import annotations

from anyengine.backend import CheckpointSupport, QuantizedFormat

from anyengine_vllm import versions

__all__ = ["checkpoints", "on_cpu", "on_gpu"]

_COMPRESSED = "compressed-tensors"
#: Marlin's (``MARLIN_SUPPORTED_GROUP_SIZES``); 0 is a scale of a whole row.
_GROUPS = (0, 32, 64, 128)
_TURING, _ADA = (7, 5), (8, 9)
_CACHES = ("fp8",)
_VNNI = ("avx512_vnni",)
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


def checkpoints() -> CheckpointSupport:
    """Of the vLLM that is installed here, or of one for GPUs if none is."""
    return CheckpointSupport(formats=on_cpu() if versions.cpu_build() else on_gpu())


def on_cpu() -> tuple[QuantizedFormat, ...]:
    """By the kernels for CPUs."""
    return (
        QuantizedFormat(
            method=_COMPRESSED,
            format="pack-quantized",
            scheme="int4-w4a16",
            group_sizes=_GROUPS,
            instructions=_AVX512,
        ),
        QuantizedFormat(
            method=_COMPRESSED, format="int-quantized", scheme="int8-w8a8", group_sizes=(0,), instructions=_VNNI
        ),
    )


def on_gpu() -> tuple[QuantizedFormat, ...]:
    """By the kernels for GPUs."""
    packed = [
        QuantizedFormat(
            method=_COMPRESSED,
            format="pack-quantized",
            scheme=scheme,
            group_sizes=_GROUPS,
            asymmetric=True,
            reordered=True,
            kv_cache=_CACHES,
            minimum_capability=_TURING,
        )
        for scheme in ("int4-w4a16", "int8-w8a16")
    ]
    others = [
        QuantizedFormat(method=_COMPRESSED, format=form, scheme=scheme, kv_cache=_CACHES, minimum_capability=minimum)
        for form, scheme, minimum in (
            ("int-quantized", "int8-w8a8", _TURING),
            ("int-quantized", "int8-w8a8-static", _TURING),
            # Below 8.9 the activations stay in float: Marlin's kernel.
            ("float-quantized", "fp8-dynamic", _TURING),
            ("float-quantized", "fp8-static", _TURING),
            ("nvfp4-pack-quantized", "nvfp4", _TURING),
            ("nvfp4-pack-quantized", "nvfp4-w4a16", _TURING),
            (None, "kv-fp8", _ADA),
        )
    ]
    own = [
        QuantizedFormat(
            method=method,
            format="gemm" if method == "awq" else None,
            scheme=scheme,
            group_sizes=groups,
            asymmetric=method == "awq",
            reordered=method == "gptq",
            minimum_capability=minimum,
        )
        for method, scheme, groups, minimum in (
            ("awq", "int4-awq", _GROUPS, _TURING),
            ("gptq", "int4-gptq", _GROUPS, _TURING),
            ("gptq", "int8-gptq", _GROUPS, _TURING),
            ("fp8", "fp8-dynamic", None, _TURING),
            ("fp8", "fp8-dynamic-block", None, _TURING),
            ("fp8", "fp8-static", None, _TURING),
        )
    ]
    modelopt = [
        QuantizedFormat(method="modelopt", scheme=scheme, kv_cache=_CACHES, minimum_capability=minimum)
        for scheme, minimum in (("fp8-static", _ADA), ("nvfp4", _TURING))
    ]
    bits = [
        QuantizedFormat(method="bitsandbytes", scheme=scheme, minimum_capability=(7, 0))
        for scheme in ("bitsandbytes-4bit", "bitsandbytes-8bit")
        if "bitsandbytes" in versions.quantization(versions.installed())
    ]
    return (*packed, *others, *own, *modelopt, *bits)
