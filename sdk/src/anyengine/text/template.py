"""Chat templates: from a list of messages to the text of a prompt.

Rendering gives what `transformers` gives (``utils/chat_template_utils.py``), for the same messages, template and
variables, within limits: a template that asks for more than :mod:`anyengine.text.budget` allows is refused.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig, InvalidRequest
from anyengine.plain import plain_data
from anyengine.text.budget import Budget, BudgetExceededError
from anyengine.text.messages import check_kwargs, check_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jinja2

    from anyengine.text.sandbox import ChatEnvironment

__all__ = ["ChatTemplate", "compile_template"]

MAX_SOURCE = 500_000
"""Characters of a template; those of current models have up to 30,000."""

MARK = "ANYENGINE-CONTINUES-HERE "
"""Ends the message to be continued while it is rendered. The space shows whether the template strips content."""


class ChatTemplate:
    """A compiled chat template; see :func:`compile_template`. Never changes; safe to share between threads."""

    __slots__ = ("_takes_parts", "_template")

    def __init__(self, template: jinja2.Template, *, takes_parts: bool) -> None:
        self._template = template
        self._takes_parts = takes_parts

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> str:
        """The text of the prompt; takes at most about two seconds of processor time.

        Content given as text parts reaches the template as parts if the template loops over content, and else as one
        text, the parts joined by line ends.

        Args:
            messages: see :func:`anyengine.text.messages.check_messages`.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: end with the content of the last message, its turn left open; with
                `add_generation_prompt` a contradiction.
            tools: JSON schemas of functions.
            kwargs: further variables of the template; JSON data.
            special_tokens: the tokenizer's, by name: ``bos_token`` and so on.

        Raises:
            InvalidRequest: something in the arguments is not valid (the field says what); the template rejects the
                messages with ``raise_exception``, or fails on them (field ``messages``); or it does what the sandbox or
                the budget forbids (field ``chat_template``).
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "the last message cannot be continued and followed by a new turn: "
                "pass add_generation_prompt=False with continue_final_message=True",
                field="continue_final_message",
            )
        special_tokens = special_tokens or {}
        conversation = check_messages(messages, join_parts=not self._takes_parts)
        if continue_final_message:
            _mark_end(conversation)
        variables = check_kwargs(kwargs or {}, special_tokens)
        functions = None if tools is None else plain_data(list(tools), "tools")
        text = self._render_within_budget(
            {
                "documents": None,
                **special_tokens,
                **variables,
                "messages": conversation,
                "tools": functions,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_mark(text) if continue_final_message else text

    def _render_within_budget(self, variables: dict[str, Any]) -> str:
        from jinja2.exceptions import SecurityError  # noqa: PLC0415 (heavy)

        from anyengine.text.sandbox import RaisedByTemplateError  # noqa: PLC0415 (heavy)

        try:
            with Budget(_size(variables)).activate():
                return self._template.render(variables)
        except RaisedByTemplateError as error:
            raise InvalidRequest(f"the chat template rejects the messages: {error}", field="messages") from error
        except (BudgetExceededError, RecursionError, MemoryError) as error:
            raise InvalidRequest(
                f"the chat template was stopped: {error or type(error).__name__}", field="chat_template"
            ) from error
        except SecurityError as error:
            raise InvalidRequest(f"the chat template is not safe: {error}", field="chat_template") from error
        except Exception as error:  # a template can fail in every way that Python can
            raise InvalidRequest(
                f"the chat template fails on these messages: {type(error).__name__}: {error}", field="messages"
            ) from error


@lru_cache(maxsize=64)
def compile_template(source: str) -> ChatTemplate:
    """Compile Jinja `source`; the same source is compiled once.

    Raises:
        InvalidConfig: (field ``chat_template``) it is not valid Jinja, or too large.
    """
    if len(source) > MAX_SOURCE:
        raise InvalidConfig(f"the chat template has more than {MAX_SOURCE} characters", field="chat_template")
    environment = _environment()
    try:
        with Budget().activate():
            return ChatTemplate(environment.from_string(source), takes_parts=environment.takes_parts(source))
    except Exception as error:  # Jinja's own, and Python's on code that nests too deep
        line = getattr(error, "lineno", None)
        place = "" if line is None else f" (line {line})"
        raise InvalidConfig(f"the chat template cannot be compiled{place}: {error}", field="chat_template") from error


@cache
def _environment() -> ChatEnvironment:
    from anyengine.text.sandbox import ChatEnvironment  # noqa: PLC0415 (heavy)

    return ChatEnvironment()


def _size(variables: Mapping[str, Any]) -> int:
    budget = Budget()
    budget.value_limit = 2**62  # the input is as large as it is; what is made of it has limits
    return budget.size(dict(variables))


def _mark_end(conversation: list[dict[str, Any]]) -> None:
    last = conversation[-1]
    if isinstance(last.get("content"), str):
        last["content"] += MARK
    elif last.get("content"):
        last["content"][-1]["text"] += MARK
    else:
        raise InvalidRequest("the last message has no content to continue", field="continue_final_message")


def _cut_at_mark(text: str) -> str:
    at = text.rfind(MARK.rstrip())
    if at < 0:
        raise InvalidRequest(
            "the chat template leaves out the content of the last message, so it cannot be continued",
            field="continue_final_message",
        )
    # A template that strips content would have stripped its end, too.
    return text[:at] if text.startswith(MARK, at) else text[:at].rstrip()
