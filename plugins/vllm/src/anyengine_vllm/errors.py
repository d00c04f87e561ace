"""vLLM's exceptions as ours: one map for requests, one table of causes for a load.

vLLM is not imported here: classes are known by their names, and a class that is not in the map is taken for its
nearest base that is. ``tests/test_errors.py`` holds the map against every exception that vLLM has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from anyengine.backend.failures import MORE_MEMORY, LoadCause, load_failure, request_failure
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    UnsupportedParameter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["REQUEST_ERRORS", "load_error", "request_error"]

#: vLLM's name of a parameter → ours, where a validation error names one.
_FIELDS = {
    "allowed_token_ids": "sampling.allowed_token_ids",
    "bad_words": "sampling.bad_words",
    "logit_bias": "sampling.logit_bias",
    "logprobs": "logprobs",
    "max_tokens": "max_tokens",
    "prompt_logprobs": "prompt_logprobs",
    "stop_token_ids": "stop_token_ids",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
}

#: vLLM does not say when there will be room.
_RETRY_AFTER = 1.0


def _invalid(error: BaseException) -> AnyEngineError:
    parameter = getattr(error, "parameter", None)
    text = str(error)
    field = _FIELDS.get(str(parameter))
    if field is None and re.search(r"(?i)grammar|structured|regex|json", text):
        field = "structured"
    return InvalidRequest(f"{field}: {text}" if field else text, field=field)


def _no_adapter(error: BaseException) -> AnyEngineError:
    return InvalidRequest(f"lora: {error}", field="lora")


def _overloaded(error: BaseException) -> AnyEngineError:
    return Overloaded(str(error), retry_after=_RETRY_AFTER)


def _died(error: BaseException) -> AnyEngineError:
    return EngineDied(f"the engine core of vLLM died: {error}")


def _memory(error: BaseException) -> AnyEngineError:
    return OutOfMemory(f"memory did not suffice: {error}")


def _failed(error: BaseException) -> AnyEngineError:
    return Failure(f"vLLM failed on the request: {type(error).__name__}: {error}")


#: Class → ours.
REQUEST_ERRORS: dict[str, Callable[[BaseException], AnyEngineError]] = {
    "vllm.v1.engine.exceptions.EngineDeadError": _died,
    "vllm.v1.engine.exceptions.EngineGenerateError": _failed,
    "vllm.v1.engine.async_llm.InputStreamError": _failed,
    "vllm.exceptions.VLLMValidationError": _invalid,
    "vllm.exceptions.LoRAAdapterNotFoundError": _no_adapter,
    "vllm.exceptions.VLLMNotFoundError": _invalid,
    "vllm.exceptions.VLLMUnprocessableEntityError": _invalid,
    "vllm.exceptions.ChatTemplateResolutionError": _invalid,
    "vllm.exceptions.VLLMClientError": _invalid,
    "vllm.exceptions.QueueOverflowError": _overloaded,
    "vllm.exceptions.MaxQueuedTokensError": _overloaded,
    "vllm.exceptions.RetryableRequestError": _overloaded,
    "vllm.exceptions.ProfilerAlreadyActiveError": _failed,
    "vllm.exceptions.GracefulHTTPError": _failed,
    "vllm.exceptions.GenerationError": _failed,
    "vllm.exceptions.VLLMServerError": _failed,
    "vllm.exceptions.VLLMError": _failed,
    "torch.OutOfMemoryError": _memory,
    "torch.cuda.OutOfMemoryError": _memory,
    "builtins.MemoryError": _memory,
    # 0.25.1 raises it for values that it refuses, and of a grammar.
    "builtins.ValueError": _invalid,
}


#: How torch and its allocators say that there is no more memory.
_NO_MEMORY = r"(?i)(CUDA out of memory|OutOfMemoryError|can't allocate memory|not enough memory)[^\n]*"


def request_error(error: BaseException) -> AnyEngineError | None:
    """Ours for what a call of vLLM raised; None for what is not in the map: a bug of this package, or of vLLM."""
    if type(error).__qualname__ == "EngineGenerateError" and error.__cause__ is not None:
        # It says nothing itself; what went wrong is its cause.
        return request_error(error.__cause__) or _failed(error.__cause__)
    if type(error) is Exception:
        # Of a call that is no request (of adapters, say) and failed in the core: its words are all that is left.
        return _memory(error) if re.search(_NO_MEMORY, str(error)) else _failed(error)
    return request_failure(error, REQUEST_ERRORS)


#: The first that is found counts.
_CAUSES = (
    LoadCause(_NO_MEMORY, OutOfMemory, MORE_MEMORY),
    LoadCause(
        r"(?i)(Free memory on device|Available memory on node|No available memory for the cache|"
        r"KV cache is needed|larger than the available KV cache memory)[^\n]*",
        OutOfMemory,
        MORE_MEMORY,
    ),
    LoadCause(
        r"Model architectures? [^\n]*not supported[^\n]*|[^\n]*has no vLLM implementation[^\n]*|"
        r"[^\n]*does not recognize this architecture[^\n]*",
        UnsupportedParameter,
        "vLLM has no implementation of this model",
        field="model",
    ),
    LoadCause(
        r"User-specified max_model_len[^\n]*|max_model_len[^\n]*is greater than the derived[^\n]*",
        InvalidConfig,
        "the model's context is shorter",
        field="max_model_len",
    ),
    LoadCause(
        r"[^\n]*is not supported for quantization method[^\n]*|The model type [^\n]*does not support float16[^\n]*|"
        r"Bfloat16 is only supported on[^\n]*",
        UnsupportedParameter,
        "give another; auto is the checkpoint's own",
        field="dtype",
    ),
    LoadCause(
        r"(?i)[^\n]*(?:quantization method|quantization)[^\n]*(?:does not match|not supported|Unknown)[^\n]*",
        UnsupportedParameter,
        "it does not fit the checkpoint or the device",
        field="quantization",
    ),
)


def load_error(error: BaseException, log: Sequence[str]) -> AnyEngineError | None:
    """Ours for a load that failed.

    Args:
        error: what ``AsyncLLM`` raised; where its engine core failed that says no more than so.
        log: what the processes of the engine logged as errors.

    Returns:
        None for what is no failure of a load: an interruption.
    """
    if not isinstance(error, Exception):
        return None
    own = f"{type(error).__name__}: {error}"
    return load_failure(error, "vLLM", [own, *log], _CAUSES, summary=_root(log))


def _root(log: Sequence[str]) -> str | None:
    """The last line of the first traceback that was logged: what went wrong first."""
    inside = False
    for line in log:
        if "Traceback (most recent call last)" in line:
            inside = True
        matched = inside and re.search(r"(?:^|\] )((?:[A-Za-z_][\w.]*)(?:Error|Exception|Exit|Interrupt)\b.*)", line)
        if matched:
            return matched.group(1).strip()
    return None
