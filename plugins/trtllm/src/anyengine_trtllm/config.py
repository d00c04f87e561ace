"""From an :class:`~anyengine.EngineConfig` to the arguments of ``LLM``: functions of the library's classes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend.memory import free_fraction, weight_bytes
from anyengine.backend.model_config import text_config
from anyengine.errors import InvalidConfig

from anyengine_trtllm.adapter import check_adapter, widest
from anyengine_trtllm.capabilities import QUANTIZATION
from anyengine_trtllm.options import NESTED, SPECULATION
from anyengine_trtllm.pytorch import check_checkpoint
from anyengine_trtllm.switched_off import CHUNKED_PREFILL, PREFIX_CACHING, switched_off

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from anyengine.config import EngineConfig, LoRAConfig
    from anyengine.hub import ModelFiles

    from anyengine_trtllm.library import Library
    from anyengine_trtllm.options import Options

__all__ = ["chunked_prefill", "engine_arguments", "max_model_len", "prefix_caching"]

#: TensorRT-LLM's own bound on the tokens of a step, where none is given.
MAX_NUM_TOKENS = 8192


def engine_arguments(config: EngineConfig, model: ModelFiles, options: Options, library: Library) -> dict[str, Any]:
    """Map every field.

    Args:
        config: within the declared capabilities, looked over by :func:`~anyengine_trtllm.checks.check_config`.
        model: the checkpoint on disk.
        options: what ``native`` says.
        library: TensorRT-LLM's classes.

    Returns:
        Keyword arguments of ``LLM``. A built engine takes its limits from its ``BuildConfig``, made here too.

    Raises:
        UnsupportedParameter: a field cannot be honoured with this model.
        InvalidConfig: fields that contradict one another.
        OutOfMemory: the share of memory that was asked for is not there.
    """
    length = max_model_len(config, model)
    step = config.scheduling.max_num_batched_tokens or MAX_NUM_TOKENS
    off = switched_off(config, model, options, library)
    values: dict[str, Any] = {
        "model": str(model.path),
        # Prompts are token ids; only the compiler of structures needs a tokenizer.
        "tokenizer": str(model.tokenizer_path),
        "trust_remote_code": config.trust_remote_code,
        "dtype": config.dtype,
        "tensor_parallel_size": config.parallel.tensor,
        "pipeline_parallel_size": config.parallel.pipeline,
        "kv_cache_config": _kv_cache(config, model, options, library, off),
        "enable_chunked_prefill": chunked_prefill(config, length, step, off),
        # Of the two this is the one whose grammars are Lark's; the other backend has xgrammar only.
        "guided_decoding_backend": "xgrammar" if options.tensorrt else "llguidance",
    }
    if config.parallel.expert:
        values["moe_expert_parallel_size"] = config.parallel.tensor
    if config.lora is not None:
        values |= _lora(config.lora, model, library)
    speculation = _speculation(config, model, options, library)
    if speculation is not None:
        values["speculative_config"] = speculation
    limits = {"max_seq_len": length, "max_num_tokens": step}
    if config.scheduling.max_num_seqs is not None:
        limits["max_batch_size"] = config.scheduling.max_num_seqs
    native = dict(options.arguments)
    if options.tensorrt:
        values |= _tensorrt(config, options, library, limits, native)
    else:
        values |= _pytorch(config, model, options, library) | limits
    if "scheduler_config" in native:
        native["scheduler_config"] = _scheduler(native["scheduler_config"], library)
    for name, kind in NESTED.items():
        if name in native:
            native[name] = _given(library, name, kind, native[name])
    return values | native


def _given(library: Library, name: str, kind: str, fields: Mapping[str, Any], **ours: Any) -> Any:
    """An object of fields that come from ``native``, beside ours.

    Raises:
        InvalidConfig: TensorRT-LLM does not take them; says what it says.
    """
    try:
        return library.make(kind, **ours, **fields)
    except (TypeError, ValueError) as error:
        place = f"native.{name}"
        raise InvalidConfig(f"{place}: TensorRT-LLM's {kind} does not take it: {error}", field=place) from error


def _scheduler(fields: dict[str, Any], library: Library) -> dict[str, Any]:
    """With the values of its enumerations, which come as text."""
    found = dict(fields)
    for name, policy in library.policies.items():
        if found.get(name) is not None:
            try:
                found[name] = policy(found[name])
            except ValueError as error:
                place = f"native.scheduler_config.{name}"
                raise InvalidConfig(f"{place}: {error}; there are {', '.join(policy)}", field=place) from error
    if isinstance(found.get("dynamic_batch_config"), dict):
        found["dynamic_batch_config"] = _given(
            library, "scheduler_config.dynamic_batch_config", "DynamicBatchConfig", found["dynamic_batch_config"]
        )
    return found


def _pytorch(config: EngineConfig, model: ModelFiles, options: Options, library: Library) -> dict[str, Any]:
    check_checkpoint(config, model)
    values: dict[str, Any] = {
        "sampler_type": options.sampler,
        "enable_iter_perf_stats": True,
        "stream_interval": 1,
    }
    if config.speculative is not None and config.speculative.method in {"ngram", "draft_model"}:
        # What drafts outside of the model waits for the step before.
        values["disable_overlap_scheduler"] = True
    if config.execution != "auto":
        values["cuda_graph_config"] = None if config.execution == "eager" else library.make("CudaGraphConfig")
    return values


def _tensorrt(
    config: EngineConfig, options: Options, library: Library, limits: dict[str, int], native: dict[str, Any]
) -> dict[str, Any]:
    """What a built engine is built with."""
    if options.speculates:
        limits = limits | {"max_draft_len": _draft_length(config, options)}
    build = _given(library, "build_config", "BuildConfig", native.pop("build_config", {}), **limits)
    values: dict[str, Any] = {"build_config": build}
    if config.quantization is not None:
        algorithm = library.quant_algo(QUANTIZATION[config.quantization])
        values["quant_config"] = library.make("QuantConfig", quant_algo=algorithm)
    return values


def _draft_length(config: EngineConfig, options: Options) -> int:
    if config.speculative is not None:
        return config.speculative.num_speculative_tokens
    return int((options.speculation or {}).get("max_draft_len") or 0)


def max_model_len(config: EngineConfig, model: ModelFiles) -> int:
    """As asked; else the model's own, as far as the cache holds it.

    Raises:
        InvalidConfig: it does not fit, or nobody says how long the context is.
    """
    own, wanted, capacity = (
        text_config(model.config).get("max_position_embeddings"),
        config.max_model_len,
        config.kv_cache.capacity_tokens,
    )
    if wanted is None and not isinstance(own, int):
        raise InvalidConfig("max_model_len: the model's config.json does not say; give it", field="max_model_len")
    if wanted is not None and isinstance(own, int) and wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the model's {own}", field="max_model_len")
    if wanted is not None and capacity is not None and wanted > capacity:
        raise InvalidConfig(
            f"kv_cache.capacity_tokens: {capacity} tokens do not hold one context of {wanted} (max_model_len)",
            field="kv_cache.capacity_tokens",
        )
    length = wanted or own
    assert isinstance(length, int)  # noqa: S101 checked above
    return length if capacity is None else min(length, capacity)


def chunked_prefill(config: EngineConfig, length: int, step: int, off: Collection[str]) -> bool:
    """As asked; else on where a prompt may be longer than a step, which TensorRT-LLM would refuse."""
    if CHUNKED_PREFILL in off:
        return False
    wanted = config.scheduling.chunked_prefill
    return length > step if wanted is None else wanted


def prefix_caching(config: EngineConfig, off: Collection[str]) -> bool:
    """As asked; TensorRT-LLM's own default is on, where it has it."""
    return config.kv_cache.prefix_caching is not False and PREFIX_CACHING not in off


def _kv_cache(config: EngineConfig, model: ModelFiles, options: Options, library: Library, off: Collection[str]) -> Any:
    wanted = config.kv_cache
    values: dict[str, Any] = {"enable_block_reuse": prefix_caching(config, off), "dtype": wanted.dtype}
    if wanted.block_size is not None:
        values["tokens_per_block"] = wanted.block_size
    if wanted.capacity_tokens is not None:
        values["max_tokens"] = wanted.capacity_tokens
    if wanted.gpu_memory_fraction is not None:
        free, total = library.device_memory()
        devices = config.parallel.tensor * config.parallel.pipeline
        values["free_gpu_memory_fraction"] = free_fraction(
            wanted.gpu_memory_fraction, total=total, free=free, weights=weight_bytes(model.path, devices=devices)
        )
    return _given(library, "kv_cache_config", "KvCacheConfig", options.kv_cache, **values)


def _speculation(config: EngineConfig, model: ModelFiles, options: Options, library: Library) -> Any | None:
    if options.speculation is not None:
        fields = {name: value for name, value in options.speculation.items() if name != "decoding_type"}
        return _given(library, "speculative_config", SPECULATION[options.speculation["decoding_type"]], fields)
    wanted = config.speculative
    if wanted is None:
        return None
    length = {"max_draft_len": wanted.num_speculative_tokens}
    if wanted.method == "ngram":
        # A pool that requests share would show one the phrases of another, by how fast it is.
        return library.make(
            "NGramDecodingConfig", **length, max_matching_ngram_size=wanted.ngram_max, is_public_pool=False
        )
    if wanted.method == "mtp":
        return library.make("MTPDecodingConfig", num_nextn_predict_layers=wanted.num_speculative_tokens)
    if model.draft is None:
        raise InvalidConfig("speculative.model: the proposer's checkpoint is missing", field="speculative.model")
    if wanted.method == "draft_model":
        sizes = [text_config(files.config).get("vocab_size") for files in (model, model.draft)]
        if sizes[0] != sizes[1]:
            raise InvalidConfig(
                f"speculative.model: its vocabulary has {sizes[1]} tokens, the model's has {sizes[0]}; they must share "
                "a tokenizer",
                field="speculative.model",
            )
        return library.make("DraftTargetDecodingConfig", **length, speculative_model=str(model.draft.path))
    one_model = {"eagle3_one_model": True} if wanted.method == "eagle3" else {}
    return library.make("EagleDecodingConfig", **length, speculative_model=str(model.draft.path), **one_model)


def _lora(wanted: LoRAConfig, model: ModelFiles, library: Library) -> dict[str, Any]:
    if not model.loras:
        raise InvalidConfig(
            "lora.adapters: name at least one; TensorRT-LLM learns from it which parts of the model adapters change",
            field="lora.adapters",
        )
    name, modules = widest(model.loras)
    for each, folder in model.loras.items():
        check_adapter(each, folder, wanted.max_rank, modules)
    config = library.make(
        "LoraConfig",
        lora_dir=[str(model.loras[name])],
        max_lora_rank=wanted.max_rank,
        max_loras=wanted.most_in_a_batch,
        max_cpu_loras=max(wanted.most_in_a_batch, len(wanted.adapters)),
    )
    return {"enable_lora": True, "lora_config": config}
