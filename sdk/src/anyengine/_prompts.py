"""What a caller may write as a prompt, as requests: one or many, text, ids or messages, told apart by type alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from anyengine.errors import AnyEngineError, InvalidRequest
from anyengine.request import GenerateRequest

if TYPE_CHECKING:
    from anyengine.request import Message, Prompt, RequestOptions

__all__ = ["is_many", "make_request", "placed", "prompt_of", "token_ids_of"]


def is_many(prompt: object) -> TypeGuard[Sequence[Prompt]]:
    """Whether it is a list of prompts: its members are texts or lists, not token ids or messages."""
    if not isinstance(prompt, (list, tuple)):
        return False
    members = cast("Sequence[object]", prompt)
    return not members or isinstance(members[0], (str, list, tuple))


def placed(error: AnyEngineError, position: int) -> AnyEngineError:
    """Say which prompt of a list an error is about."""
    if not (error.field or "").startswith("prompts["):  # an engine that dies raises one error for all
        error.field = f"prompts[{position}].{error.field or ''}".rstrip(".")
    return error


def prompt_of(request: GenerateRequest) -> Prompt:
    """The prompt or the messages of a request."""
    return request.prompt if request.prompt is not None else request.messages or ()


def make_request(prompt: object, messages: Sequence[Message] | None, options: RequestOptions) -> GenerateRequest:
    """One request of what a call was given.

    Raises:
        InvalidRequest: it cannot be right.
    """
    if isinstance(prompt, GenerateRequest):
        if messages is not None or options:
            raise InvalidRequest("give either a GenerateRequest, or a prompt and options, not both", field="prompt")
        return prompt
    fields: dict[str, Any] = dict(options)
    if prompt is not None:
        members = cast("Sequence[object]", prompt) if isinstance(prompt, (list, tuple)) else ()
        is_chat = bool(members) and isinstance(members[0], Mapping)
        if is_chat and messages is not None:
            raise InvalidRequest("give exactly one of prompt and messages", field="prompt")
        fields["messages" if is_chat else "prompt"] = prompt
    if messages is not None:
        fields["messages"] = messages
    return GenerateRequest(**fields)


def token_ids_of(value: object) -> list[int]:
    """A list of integers, as it is.

    Raises:
        InvalidRequest: it is something else.
    """
    items = list(cast("Sequence[object]", value)) if isinstance(value, Sequence) else [None]
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not all(isinstance(item, int) for item in items):
        raise InvalidRequest("token_ids: must be a list of integers", field="token_ids")
    return cast("list[int]", items)
