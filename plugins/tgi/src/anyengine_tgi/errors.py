"""TGI's errors as ours: one map, by ``error_type`` and by HTTP status.

Before a stream, and outside of one, the status says the same as the type; within a stream it is 200 whatever happened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import AnyEngineError, EngineDied, Failure, InvalidRequest, OutOfMemory, Overloaded
from anyengine_server import answer_error, message_of, retry_after

if TYPE_CHECKING:
    from anyengine_server import Answer

__all__ = ["ERROR_TYPES", "FIELDS", "tgi_error"]

#: ``error_type`` → ours.
ERROR_TYPES: dict[str, type[AnyEngineError]] = {
    "generation": Failure,
    "healthcheck": EngineDied,
    "incomplete_generation": Failure,
    "incomplete_generation_stream": Failure,
    "missing_template_variable": InvalidRequest,
    "overloaded": Overloaded,
    "stream_serialization_error": Failure,
    "template_error": InvalidRequest,
    "tool_error": InvalidRequest,
    "validation": InvalidRequest,
}

#: A parameter that a message of TGI names → the field that it came from.
FIELDS = {
    "adapter_id": "lora",
    "grammar": "structured",
    "inputs": "prompt",
    "max_new_tokens": "max_tokens",
    "repetition_penalty": "sampling.repetition_penalty",
    "seed": "sampling.seed",
    "temperature": "sampling.temperature",
    "top_k": "sampling.top_k",
    "top_n_tokens": "logprobs",
    "top_p": "sampling.top_p",
}

_MEMORY = re.compile(r"(?i)out of memory|OutOfMemoryError")


def tgi_error(answer: Answer) -> AnyEngineError:
    """The error for an answer or an event of TGI."""
    content: Any = answer.json()
    kind = cast("dict[str, Any]", content).get("error_type") if isinstance(content, dict) else None
    cls = ERROR_TYPES.get(str(kind))
    if cls is None:
        return Failure(f"TGI failed: {message_of(answer)}") if answer.within_stream else answer_error(answer)
    words = message_of(answer)
    if cls is Overloaded:
        return Overloaded(f"TGI: {words}", retry_after=retry_after(answer.headers))
    if cls is InvalidRequest:
        named = re.search(r"`(\w+)`", words)
        field = FIELDS.get(named[1]) if named else None
        return InvalidRequest(f"{field}: TGI: {words}" if field else f"TGI: {words}", field=field)
    if _MEMORY.search(words):
        return OutOfMemory(f"memory did not suffice: {words}")
    return cls(f"TGI failed on the request ({kind}): {words}")
