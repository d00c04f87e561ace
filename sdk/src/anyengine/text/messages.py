"""Checks what goes into a chat template, before it goes in: messages, tools, further variables.

A template sees nothing but plain JSON data. An object with methods is refused, not shown: what its methods do is not
known to the sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from anyengine.errors import InvalidRequest

__all__ = ["check_kwargs", "check_messages", "plain_data"]

MAX_DEPTH = 100
"""Of lists and mappings in one another; JSON parsers and Python's own recursion draw the line not far above."""

RESERVED = frozenset({
    # the renderer's own
    "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template",
    # arguments of transformers' apply_chat_template that are not variables of the template
    "conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs",
    # the tokenizer's
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    # functions of the template
    "cycler", "dict", "joiner", "namespace", "raise_exception", "range", "strftime_now",
    # names that Jinja binds
    "caller", "context", "environment", "loop", "self", "super", "varargs",
})  # fmt: skip
"""Variables that ``chat_template_kwargs`` must not set."""


def check_messages(messages: Sequence[Mapping[str, Any]], *, join_parts: bool = False) -> list[dict[str, Any]]:
    """A plain copy of `messages`.

    Args:
        messages: mappings with ``role`` and ``content``; content is text, or a list of parts
            ``{"type": "text", "text": …}``. It may be None or absent in a message with ``tool_calls``. Further keys
            (``name``, ``tool_calls``, ``reasoning_content`` …) are for the template, and hold JSON data.
        join_parts: make the text of parts one text, joined by line ends (as vLLM does), for templates that expect text.

    Raises:
        InvalidRequest: the first thing that is wrong, with its place, such as ``messages[2].content[0].type``, as
            field.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(cast("object", messages), Sequence):
        raise InvalidRequest("messages must be a list of mappings with role and content", field="messages")
    if not messages:
        raise InvalidRequest("there is no message", field="messages")
    return [_message(message, f"messages[{index}]", join_parts=join_parts) for index, message in enumerate(messages)]


def check_kwargs(kwargs: Mapping[str, Any], special_tokens: Mapping[str, str]) -> dict[str, Any]:
    """A plain copy of ``chat_template_kwargs``.

    Raises:
        InvalidRequest: (field ``chat_template_kwargs.NAME``) a name is taken, or no variable's, or a value not JSON.
    """
    for name in kwargs:
        place = f"chat_template_kwargs.{name}"
        if not isinstance(cast("object", name), str) or not name.isidentifier() or name.startswith("_"):
            raise InvalidRequest(f"{name!r} is not a name that a template variable can have", field=place)
        if name in RESERVED or name in special_tokens:
            raise InvalidRequest(f"{name} is set by anyengine and cannot be given as a template variable", field=place)
    return plain_data(kwargs, "chat_template_kwargs")


def plain_data(value: Any, place: str, *, depth: int = 0) -> Any:
    """A copy of `value` of nothing but dict, list, str, int, float, bool and None.

    Raises:
        InvalidRequest: (field: the place in `value`) something else, or deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"more than {MAX_DEPTH} lists and mappings in one another", field=place)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        for key in entries:
            if type(key) is not str:
                raise InvalidRequest(f"keys must be text, not {type(key).__name__}", field=place)
        return {str(key): plain_data(item, f"{place}.{key}", depth=depth + 1) for key, item in entries.items()}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return [plain_data(item, f"{place}[{index}]", depth=depth + 1) for index, item in enumerate(items)]
    # Subclasses such as string enumerations can have methods of their own: keep the value, leave them.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise InvalidRequest(f"only JSON data can be given to a chat template, not {type(value).__name__}", field=place)


def _message(message: object, place: str, *, join_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"a message is a mapping with role and content, not {type(message).__name__}", field=place)
    plain = cast("dict[str, Any]", plain_data(message, place))
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequest("a message needs a role: system, user, assistant, tool …", field=f"{place}.role")
    if isinstance(content, list):
        texts = [_text_part(part, f"{place}.content[{i}]") for i, part in enumerate(cast("list[object]", content))]
        if join_parts:
            plain["content"] = "\n".join(texts)
    elif content is None and not plain.get("tool_calls"):
        raise InvalidRequest("a message needs content (or tool_calls)", field=f"{place}.content")
    elif not isinstance(content, (str, type(None))):
        raise InvalidRequest(
            f"content is text or a list of text parts, not {type(content).__name__}", field=f"{place}.content"
        )
    return plain


def _text_part(part: object, place: str) -> str:
    fields = cast("dict[str, object]", part) if isinstance(part, dict) else {}
    kind, text = fields.get("type"), fields.get("text")
    if kind != "text":
        raise InvalidRequest(
            f"only text parts are supported, {{'type': 'text', 'text': …}}, not {kind or part!r}", field=f"{place}.type"
        )
    if not isinstance(text, str):
        raise InvalidRequest("a text part needs text", field=f"{place}.text")
    return text
