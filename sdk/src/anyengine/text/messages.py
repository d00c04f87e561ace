"""Checks what goes into a chat template, before it goes in: messages, tools, further variables.

A template sees nothing but plain JSON data. An object with methods is refused, not shown: what its methods do is not
known to the sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from anyengine.errors import InvalidRequest
from anyengine.plain import plain_data

__all__ = ["check_kwargs", "check_messages"]

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
