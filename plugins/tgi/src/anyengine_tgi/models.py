"""What TGI 3.3.7 honours with one kind of model, and with another not; without a word, or with no more than a warning.

After ``server/text_generation_server/models/__init__.py`` (``get_model``) and ``models/model.py``. Kinds that it has no
code of its own for run by way of transformers, which takes less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.errors import InvalidConfig, UnsupportedParameter

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["DEFAULT_PREFILL", "check_kind", "in_chunks", "prefill_tokens", "reads_images"]

#: The launcher's ``--max-batch-prefill-tokens``, at most.
DEFAULT_PREFILL = 4096
#: Kinds to which it hands the type of the cache.
_CACHE_TYPE = frozenset({
    "baichuan", "cohere", "dbrx", "deepseek_v2", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text",
    "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite", "idefics2", "llama", "llava_next", "mistral", "mixtral",
    "paligemma", "phi", "phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_vl", "RefinedWeb", "RefinedWebModel",
    "starcoder2",
})  # fmt: skip
#: Kinds that it has code for, which goes by ``--quantize``; transformers hears of ``bitsandbytes`` alone.
_OWN_CODE = _CACHE_TYPE | {"bloom", "idefics", "idefics3", "mamba", "mllama", "mpt", "opt", "t5"}
#: Kinds that run padded (``models/causal_lm.py``, ``mamba.py``): no prefix is kept, and nothing drafted.
_PADDED = frozenset({"bloom", "idefics", "mamba", "mpt", "opt", "t5"})
#: Kinds whose prompts it computes in chunks.
_CHUNKS = _CACHE_TYPE - {"gemma3", "qwen2_5_vl", "qwen2_vl"} | {"idefics3"}
#: Kinds with which ``![](address)`` in a prompt is a picture, which the router fetches (``router/src/validation.rs``).
_PICTURES = frozenset({
    "gemma3", "idefics", "idefics2", "idefics3", "llama4", "llava_next", "mllama", "paligemma", "qwen2_5_vl",
    "qwen2_vl",
})  # fmt: skip


def check_kind(config: EngineConfig, model: ModelFiles) -> None:
    """Refuse what TGI would not do with this kind of model.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
    """
    kind = _kind(model)
    if "medusa_num_heads" in model.config or kind == "mlp_speculator":
        base = model.config.get("base_model_name_or_path")
        raise _unsupported(
            "model", f"it has heads that speculate, and TGI would load the model that it names beside them, {base}"
        )
    if config.quantization not in {None, "bitsandbytes"} and kind not in _OWN_CODE:
        raise _unsupported("quantization", f"TGI does not look at it with models of the type {kind}", ("bitsandbytes",))
    if kind in _PADDED:
        for name, asked in (
            ("speculative", config.speculative is not None),
            ("kv_cache.prefix_caching", config.kv_cache.prefix_caching),
            ("execution", config.execution == "graph" and kind != "mamba"),
        ):
            if asked:
                raise _unsupported(name, f"TGI does not do it with models of the type {kind}, which it runs padded")
    if config.kv_cache.dtype != "auto" and kind not in _CACHE_TYPE:
        raise _unsupported("kv_cache.dtype", f"TGI does not look at it with models of the type {kind}", ("auto",))
    if config.scheduling.chunked_prefill and config.speculative is not None:
        raise _unsupported("scheduling.chunked_prefill", "TGI computes prompts at once where it speculates")
    if config.scheduling.chunked_prefill and kind not in _CHUNKS:
        raise _unsupported("scheduling.chunked_prefill", f"TGI computes prompts at once with models of the type {kind}")


def in_chunks(config: EngineConfig, model: ModelFiles) -> bool:
    """Whether prompts are computed in chunks, on a GPU that has the kernels for it (compute capability 8.0)."""
    return config.scheduling.chunked_prefill is not False and config.speculative is None and _kind(model) in _CHUNKS


def prefill_tokens(config: EngineConfig, model: ModelFiles, longest: int | None) -> int | None:
    """``--max-batch-prefill-tokens``: where a prompt is computed at once, it has to hold the longest.

    Args:
        config: checked already.
        model: the checkpoint.
        longest: tokens of a prompt, if that was asked for.

    Raises:
        InvalidConfig: it does not; names the field.
    """
    wanted = config.scheduling.max_num_batched_tokens
    if longest is None or in_chunks(config, model):
        return wanted
    if wanted is None:
        return longest if longest > DEFAULT_PREFILL else None
    if wanted < longest:
        field = "scheduling.max_num_batched_tokens"
        raise InvalidConfig(
            f"{field}: TGI computes a prompt at once here, and {wanted} tokens do not hold one of {longest} "
            "(max_model_len)",
            field=field,
        )
    return wanted


def reads_images(model: ModelFiles) -> bool:
    """Whether a text can name a picture."""
    return _kind(model) in _PICTURES


def _kind(model: ModelFiles) -> str:
    return str(model.config.get("model_type"))


def _unsupported(name: str, message: str, supported: tuple[str, ...] = ()) -> UnsupportedParameter:
    return UnsupportedParameter(f"{name}: {message}", field=name, supported=supported)
