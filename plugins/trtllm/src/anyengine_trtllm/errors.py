"""TensorRT-LLM's exceptions as ours: one map for requests, one table of causes for a load.

TensorRT-LLM is not imported here: classes are known by their names, and a class that is not in the map is taken for its
nearest base that is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from anyengine.backend.failures import MORE_MEMORY, LoadCause, load_failure, request_failure
from anyengine.errors import (
    AnyEngineError,
    EngineClosed,
    EngineDied,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    UnsupportedParameter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyengine.backend import TokenRequest

__all__ = ["REQUEST_ERRORS", "load_error", "mapped", "request_error"]

#: What a message says of the field that it is about. The first that is found counts.
_FIELDS = (
    (r"(?i)grammar|guided|regex|json schema|structural", "structured"),
    (r"(?i)max_num_tokens|prompt length|prompt_len", "prompt"),
    (r"(?i)max_tokens|max_seq_len", "max_tokens"),
    (r"(?i)lora", "lora"),
    (r"top_p", "sampling.top_p"),
    (r"top_k", "sampling.top_k"),
    (r"(?i)temperature", "sampling.temperature"),
)

_GONE = re.compile(r"(?i)worker.{0,40}(died|dead|exited|terminated)|MPI.{0,40}abort|executor.{0,20}(died|stopped|dead)")
_MEMORY = re.compile(r"(?i)out of memory|OutOfMemory|bad_alloc|failed to allocate")


def _invalid(error: BaseException) -> AnyEngineError:
    text = str(error)
    field = next((field for pattern, field in _FIELDS if re.search(pattern, text)), None)
    return InvalidRequest(f"{field}: {text}" if field else text, field=field)


def _memory(error: BaseException) -> AnyEngineError:
    return OutOfMemory(f"memory did not suffice: {error}")


def _failed(error: BaseException) -> AnyEngineError:
    return Failure(f"TensorRT-LLM failed on the request: {type(error).__name__}: {error}")


def _runtime(error: BaseException) -> AnyEngineError:
    """Errors of the runtime differ by their words only."""
    text = str(error)
    if _MEMORY.search(text):
        return _memory(error)
    if "shutting down" in text:
        return EngineClosed("TensorRT-LLM was shut down before the call")
    if _GONE.search(text):
        return EngineDied(f"the processes of TensorRT-LLM are gone: {text}")
    return _failed(error)


def _request(error: BaseException) -> AnyEngineError:
    """``RequestError``: one request was refused, or failed."""
    mapped = _runtime(error)
    if type(mapped) is not Failure:
        return mapped
    invalid = _invalid(error)
    return mapped if invalid.field is None else invalid


#: Class → ours.
REQUEST_ERRORS: dict[str, Callable[[BaseException], AnyEngineError]] = {
    "tensorrt_llm.executor.utils.RequestError": _request,
    "torch.OutOfMemoryError": _memory,
    "torch.cuda.OutOfMemoryError": _memory,
    "builtins.MemoryError": _memory,
    "builtins.ValueError": _invalid,
    "builtins.RuntimeError": _runtime,
    "builtins.AssertionError": _failed,
    "builtins.NotImplementedError": _failed,
}


def request_error(error: BaseException) -> AnyEngineError | None:
    """Ours for what a call of TensorRT-LLM raised; None for what is not in the map: a bug of this package, or of it."""
    return request_failure(error, REQUEST_ERRORS)


#: The first that is found counts.
_CAUSES = (
    LoadCause(
        r"(?i)[^\n]*(CUDA out of memory|OutOfMemory|bad_alloc|failed to allocate|insufficient (GPU )?memory)[^\n]*",
        OutOfMemory,
        MORE_MEMORY,
    ),
    LoadCause(
        r"(?i)[^\n]*(unknown architecture|architecture[^\n]*not supported|unsupported model)[^\n]*",
        UnsupportedParameter,
        "TensorRT-LLM has no implementation of this model",
        field="model",
    ),
    LoadCause(
        r"(?i)[^\n]*max_seq_len[^\n]*(exceed|larger|greater)[^\n]*",
        InvalidConfig,
        "the model's context is shorter",
        field="max_model_len",
    ),
    LoadCause(
        r"(?i)[^\n]*overrid(e|ing) KV cache quantization[^\n]*",
        UnsupportedParameter,
        "the checkpoint says another; leave it out",
        field="kv_cache.dtype",
    ),
    LoadCause(
        r"(?i)[^\n]*quant(ization|_algo)[^\n]*not supported[^\n]*",
        UnsupportedParameter,
        "it does not fit the checkpoint or the device",
        field="quantization",
    ),
)


def load_error(error: BaseException) -> AnyEngineError | None:
    """Ours for a load that failed; None for what is no failure of a load: an interruption."""
    if not isinstance(error, Exception):
        return None
    # What went wrong in a process of the engine comes as the cause of an error that says no more than that one did.
    said = [f"{type(each).__name__}: {each}" for each in _chain(error)]
    return load_failure(error, "TensorRT-LLM", said, _CAUSES, summary="; the cause: ".join(said))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, that first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def mapped(error: Exception, request: TokenRequest | None = None) -> Exception:
    """What is raised for what TensorRT-LLM raised; of a constraint its messages do not say the kind."""
    found = request_error(error)
    if found is None or found is error:
        return error
    found.__cause__ = error
    if found.field == "structured" and request is not None and request.structured is not None:
        found.field = f"structured.{request.structured.kind}"
    return found
