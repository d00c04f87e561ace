"""What TensorRT-LLM's PyTorch backend switches off by itself, with a line in its log (``py_executor_creator.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine_trtllm.checks import unsupported

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_trtllm.library import Library
    from anyengine_trtllm.options import Options

__all__ = ["CHUNKED_PREFILL", "PREFIX_CACHING", "switched_off"]

CHUNKED_PREFILL, PREFIX_CACHING = "scheduling.chunked_prefill", "kv_cache.prefix_caching"

#: ``attn_backend`` → what it goes without.
_ATTENTION = {
    "FLASHINFER": frozenset({PREFIX_CACHING}),
    "FLASHINFER_STAR_ATTENTION": frozenset({PREFIX_CACHING, CHUNKED_PREFILL}),
}

#: Compute capabilities whose kernels of multi-head latent attention read what is in the cache already.
_LATENT = frozenset({(9, 0), (10, 0), (10, 3), (12, 0)})


def switched_off(config: EngineConfig, model: ModelFiles, options: Options, library: Library) -> frozenset[str]:
    """The fields that are off with this model and device, whatever their default is.

    Raises:
        UnsupportedParameter: one of them is asked for.
    """
    reasons: dict[str, str] = {}
    if not options.tensorrt:
        attention = str(options.arguments.get("attn_backend"))
        reasons |= dict.fromkeys(_ATTENTION.get(attention, ()), f"with native.attn_backend {attention!r}")
        if model.config.get("kv_lora_rank") and model.config.get("qk_rope_head_dim"):
            reasons |= _latent(config, library)
    asked = {PREFIX_CACHING: config.kv_cache.prefix_caching, CHUNKED_PREFILL: config.scheduling.chunked_prefill}
    for name in sorted(reasons):
        if asked[name]:
            raise unsupported(name, f"TensorRT-LLM switches it off {reasons[name]}", {"False"})
    return frozenset(reasons)


def _latent(config: EngineConfig, library: Library) -> dict[str, str]:
    """Of models with multi-head latent attention."""
    major, minor = library.compute_capability()
    if (major, minor) not in _LATENT:
        reason = f"for models with latent attention on compute capability {major}.{minor}"
        return {PREFIX_CACHING: reason, CHUNKED_PREFILL: reason}
    if config.kv_cache.dtype not in {"auto", "fp8"}:
        return {PREFIX_CACHING: f"for models with latent attention and a cache in {config.kv_cache.dtype}"}
    return {}
