"""The one place that imports vLLM: what the rest of the package uses of it, under plain names.

vLLM is not there when this package is type-checked, and changes between versions; so its classes are ``Any`` here and
nowhere else is there an import of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from typing import Any

from anyengine.errors import EngineStartupError

from anyengine_vllm import versions

__all__ = ["Library", "load_library"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """vLLM's classes.

    Attributes:
        engine_args: ``AsyncEngineArgs``.
        argument_names: of its fields.
        async_llm: ``AsyncLLM``.
        sampling_params: :func:`exact_sampling_params`.
        structured: ``StructuredOutputsParams``.
        delta: output kind that yields what is new.
        final_only: output kind that yields once, at the end.
        pooling_params: ``PoolingParams``.
        lora_request: ``LoRARequest``.
        stat_logger: ``PrometheusStatLogger``.
        platform: ``current_platform``.
        amx: whether vLLM finds the processor's matrix tiles (AMX), for which it has other kernels.
        serving: the usage for whose sizes vLLM is asked: those of its server.
        logging: its configuration of ``logging``; None where it has none under the name that we know.
    """

    engine_args: Any
    argument_names: frozenset[str]
    async_llm: Any
    sampling_params: Any
    structured: Any
    delta: Any
    final_only: Any
    pooling_params: Any
    lora_request: Any
    stat_logger: Any
    platform: Any
    amx: bool
    serving: Any
    logging: dict[str, Any] | None


@cache
def load_library() -> Library:
    """Import vLLM; takes seconds.

    Raises:
        EngineStartupError: vLLM cannot be imported, or lacks a part that the mapping needs.
    """
    try:
        vllm = import_module("vllm")
        arguments = import_module("vllm.engine.arg_utils")
        lora = import_module("vllm.lora.request")
        platforms = import_module("vllm.platforms")
        sampling = import_module("vllm.sampling_params")
        async_llm = import_module("vllm.v1.engine.async_llm")
        loggers = import_module("vllm.v1.metrics.loggers")
        logger = import_module("vllm.logger")
        usage = import_module("vllm.usage.usage_lib")
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        raise EngineStartupError(f"vLLM cannot be imported: {error}") from error
    missing = versions.missing_parts(sampling.SamplingParams)
    if missing:
        raise EngineStartupError(
            f"vLLM {versions.installed()} has no SamplingParams.{', '.join(missing)}, which this plugin needs; "
            "use a version between 0.25.1 and 0.33, or a newer anyengine-vllm"
        )
    return Library(
        engine_args=arguments.AsyncEngineArgs,
        argument_names=frozenset(field.name for field in fields(arguments.AsyncEngineArgs)),
        async_llm=async_llm.AsyncLLM,
        sampling_params=exact_sampling_params(sampling.SamplingParams),
        structured=sampling.StructuredOutputsParams,
        delta=sampling.RequestOutputKind.DELTA,
        final_only=sampling.RequestOutputKind.FINAL_ONLY,
        pooling_params=vllm.PoolingParams,
        lora_request=lora.LoRARequest,
        stat_logger=loggers.PrometheusStatLogger,
        platform=platforms.current_platform,
        amx=bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)()),
        serving=usage.UsageContext.OPENAI_API_SERVER,
        logging=getattr(logger, "DEFAULT_LOGGING_CONFIG", None),
    )


def exact_sampling_params(base: Any) -> Any:
    """Subclass ``SamplingParams`` so that nothing is added to what was asked for.

    On the way to the engine vLLM adds the end-of-sequence tokens of the model's ``generation_config.json`` and of the
    tokenizer, even to what ``min_tokens`` holds back under ``ignore_eos``, and encodes bad words with a tokenizer of
    its own. Here the request carries both as token ids, worked out by the SDK for every engine alike.
    """

    class ExactSamplingParams(base):
        def update_from_generation_config(self, *args: Any, **kwargs: Any) -> None:
            """End-of-sequence tokens are among ``stop_token_ids`` already."""

        def update_from_tokenizer(self, *args: Any, **kwargs: Any) -> None:
            """Bad words are token ids already."""

    return ExactSamplingParams
