"""LMDeploy's failures as ours: one map of statuses, one of exceptions, one table of causes for a load.

LMDeploy is not imported here: classes are known by their names, and a class that is not in the map is taken for its
nearest base that is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

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

    from anyengine.backend import TokenRequest

__all__ = ["REQUEST_ERRORS", "STATUS_ERRORS", "load_error", "request_error", "status_error"]


def _gone(name: str, request: TokenRequest) -> AnyEngineError:
    del request
    return EngineDied(f"LMDeploy's engine has stopped ({name}); its log says why")


def _failed(name: str, request: TokenRequest) -> AnyEngineError:
    advice = "" if request.structured is None else "; where the constraint was too much, a simpler one may help"
    return Failure(f"LMDeploy gave the request up ({name}); its log says why{advice}")


def _too_long(name: str, request: TokenRequest) -> AnyEngineError:
    return InvalidRequest(
        f"prompt: {len(request.prompt_token_ids)} tokens are more than LMDeploy has room for ({name})", field="prompt"
    )


def _memory(name: str, request: TokenRequest) -> AnyEngineError:
    del request
    return OutOfMemory(f"LMDeploy had no memory for the request ({name})")


#: Names of ``ResponseType`` that end a request and are no end of ours.
STATUS_ERRORS: dict[str, Callable[[str, TokenRequest], AnyEngineError]] = {
    "ENGINE_STOP_ERROR": _gone,
    "SESSION_REPEAT": _failed,
    "SESSION_NOT_EXIST": _failed,
    "HANDLER_NOT_EXIST": _gone,
    "INPUT_LENGTH_ERROR": _too_long,
    "INTERNAL_ENGINE_ERROR": _failed,
    "PREFIX_CACHE_CONFLICT": _failed,
    "NO_QUEUE": _gone,
    "NOT_SUPPORTED": _failed,
    "OUT_OF_MEMORY": _memory,
}


def status_error(status: Any, request: TokenRequest) -> AnyEngineError:
    """Ours for a status with which LMDeploy ended a request."""
    name = str(status.name)
    return STATUS_ERRORS.get(name, _failed)(name, request)


def _invalid(error: BaseException) -> AnyEngineError:
    return InvalidRequest(f"LMDeploy refused the request: {error}")


def _broken(error: BaseException) -> AnyEngineError:
    text = str(error)
    if re.search(r"(?i)out of memory|bad_alloc", text):
        return OutOfMemory(f"memory did not suffice: {text}")
    return Failure(f"LMDeploy failed on the request: {type(error).__name__}: {text}")


def _request(error: BaseException) -> AnyEngineError:
    """``RequestError``, by its code."""
    code = str(getattr(getattr(error, "code", None), "value", ""))
    if code in {"invalid_request", "context_length_exceeded", "unsupported_feature", "request_conflict"}:
        return _invalid(error)
    if code == "engine_unavailable":
        return EngineDied(f"LMDeploy's engine has stopped: {error}")
    return _broken(error)


def _overloaded(error: BaseException) -> AnyEngineError:
    return Overloaded(str(error), retry_after=1.0)


#: Class → ours.
REQUEST_ERRORS: dict[str, Callable[[BaseException], AnyEngineError]] = {
    "lmdeploy.serve.core.exceptions.RequestError": _request,
    "lmdeploy.serve.core.exceptions.SafeRunException": _broken,
    "torch.OutOfMemoryError": _broken,
    "torch.cuda.OutOfMemoryError": _broken,
    "asyncio.queues.QueueFull": _overloaded,
    "builtins.MemoryError": _broken,
    "builtins.ValueError": _invalid,
    "builtins.AssertionError": _broken,
    "builtins.RuntimeError": _broken,
    "builtins.KeyError": _broken,
    "builtins.TypeError": _broken,
}


def request_error(error: BaseException) -> AnyEngineError | None:
    """Ours for what a call of LMDeploy raised; None for what is not in the map: a bug of this package, or of it."""
    return request_failure(error, REQUEST_ERRORS)


#: The first that is found counts.
_CAUSES = (
    LoadCause(
        r"(?i)[^\n]*(out of memory|OutOfMemory|bad_alloc|no enough (gpu )?memory|not enough (gpu )?(memory|blocks)|"
        r"num_gpu_blocks|max_block_count)[^\n]*",
        OutOfMemory,
        MORE_MEMORY,
    ),
    LoadCause(
        r"(?i)[^\n]*(does not support [^\n]*pytorch engine|unsupported model|not supported architecture|"
        r"Can not found rewrite|Failed to load model)[^\n]*",
        UnsupportedParameter,
        "LMDeploy's backend has no implementation of this model",
        field="model",
    ),
    LoadCause(
        r"(?i)[^\n]*(session_len|max_model_len)[^\n]*(exceed|larger|greater)[^\n]*",
        InvalidConfig,
        "the model's context is shorter",
        field="max_model_len",
    ),
    LoadCause(
        r"(?i)[^\n]*(unsupported quant config|Unsupported group_size|quantization[^\n]*not supported|"
        r"mismatched quant|unknown model_format)[^\n]*",
        UnsupportedParameter,
        "LMDeploy cannot run a checkpoint that is quantised like this",
        field="model",
    ),
    LoadCause(r"(?i)[^\n]*trust_remote_code[^\n]*", InvalidConfig, "read the code first", field="trust_remote_code"),
)


def load_error(error: BaseException, log: Sequence[str]) -> AnyEngineError | None:
    """Ours for a load that failed.

    Args:
        error: what LMDeploy raised. Its checks end the process where they fail (``SystemExit``), and log why.
        log: what was logged as errors.

    Returns:
        None for what is no failure of a load: an interruption.
    """
    if not isinstance(error, (Exception, SystemExit)):
        return None
    own = "its checks failed" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    last = f"{own}; {log[-1]}" if log else None
    return load_failure(error, "LMDeploy", [own, *log], _CAUSES, summary=last)
