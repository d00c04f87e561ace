"""Engines that do something else with chats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import InvalidRequest
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, fault
from anyengine_conformance.families.templates_own import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine import Completion


def _messages(prompt: Any, options: Mapping[str, Any]) -> Any:
    """The chat of a call, however it was given; None if there is none."""
    if "messages" in options:
        return options["messages"]
    given: Any = prompt
    return given if isinstance(prompt, list) and given and isinstance(given[0], dict) else None


class ChangedChat(BrokenEngine):
    """Changes the messages of ``generate``."""

    def chat(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What becomes of them."""
        return messages

    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        chat = _messages(prompt, options)
        if chat is None:
            return prompt, options
        return prompt if "messages" in options else None, {**options, "messages": self.chat(list(chat))}


@fault("templates.messages-are-the-rendered-text", "the rendered text gets special tokens once more")
class TwiceSpecial(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or len(options.get("messages", ())) != 3:  # noqa: PLR2004 the check's chat
            return completion
        return replace(completion, prompt_token_ids=[256, *completion.prompt_token_ids])


@fault("templates.tokenize-takes-messages", "the opening of the assistant's turn is not counted")
class CountsLess(BrokenEngine):
    async def count_tokens(self, prompt: Any, **options: Any) -> int:
        return await self.inner.count_tokens(prompt, **options) - isinstance(prompt, list)


@fault("templates.stream-takes-messages", "a stream takes the last message only")
class LastMessageOnly(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        if "messages" in options:
            options["messages"] = options["messages"][-1:]
        return super().stream(prompt, **options)


class ChangedText(BrokenEngine):
    """Changes what a chat is rendered to."""

    def text(self, text: str, messages: Sequence[Any]) -> str:
        """What becomes of it."""
        return text

    async def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """As the healthy engine, and changed."""
        return self.text(await self.inner.apply_chat_template(messages, **options), messages)


@fault("templates.rendering-is-the-models", "the text is stripped")
class Stripped(ChangedText):
    def text(self, text: str, messages: Sequence[Any]) -> str:
        return text.strip()


@fault("templates.generation-prompt-is-there", "the assistant's turn is not opened")
class NotOpened(ChangedText):
    def text(self, text: str, messages: Sequence[Any]) -> str:
        return text.removesuffix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")


@fault("templates.system-message-comes-first", "system messages are left out")
class NoSystem(ChangedText):
    async def apply_chat_template(self, messages: Any, **options: Any) -> str:
        others = [message for message in messages if message["role"] != "system"]
        return await self.inner.apply_chat_template(others, **options)


@fault("templates.special-spellings-are-the-tokenizers", "special tokens are taken out of the content")
class Scrubbed(ChangedChat):
    def chat(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**one, "content": one["content"].replace("<|end|>", "")} if isinstance(one.get("content"), str) else one
            for one in messages
        ]


@fault("templates.malformed-messages-are-refused", "a message without content counts as empty")
class EmptyContent(ChangedChat):
    def chat(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"content": "", **one} for one in messages]


@fault("templates.own-template-replaces", "the configuration's template is ignored")
class OwnIgnored(BrokenEngine):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        own = config.get("chat_template") == TEMPLATE
        return {name: value for name, value in config.items() if not (own and name == "chat_template")}


@fault("templates.kwargs-arrive", "chat_template_kwargs are dropped")
class KwargsDropped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ours = set(options.get("chat_template_kwargs") or ()) == {"data"}
        return prompt, {name: value for name, value in options.items() if not (ours and name == "chat_template_kwargs")}


@fault("templates.kwargs-that-are-taken-are-refused", "names that are taken are dropped")
class TakenDropped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given: dict[str, Any] = options.get("chat_template_kwargs") or {}
        if not given:
            return prompt, options
        kept = {name: value for name, value in given.items() if name != "tools"}
        return prompt, {**options, "chat_template_kwargs": kept}


@fault("templates.parts-become-text", "only the first part is taken")
class FirstPartOnly(ChangedChat):
    def chat(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**one, "content": one["content"][:1]}
            if isinstance(one.get("content"), list) and all(part["type"] == "text" for part in one["content"])
            else one
            for one in messages
        ]


class _Unguarded(ChangedText):
    """Renders some templates without the sandbox."""

    attack = ""

    async def apply_chat_template(self, messages: Any, **options: Any) -> str:
        variables: dict[str, Any] = options.get("chat_template_kwargs") or {}
        if variables.get("attack") == self.attack:
            return f"what {self.attack} gave"
        return await self.inner.apply_chat_template(messages, **options)


@fault("templates.python-is-out-of-reach", "a template reads the globals of a function")
class GlobalsRead(_Unguarded):
    attack = "globals"


@fault("templates.endless-ones-are-stopped", "text of any size is made")
class AnySize(_Unguarded):
    attack = "size"


@fault("templates.loops-are-stopped", "a loop of any length is run")
class AnyLength(_Unguarded):
    attack = "loop"


@fault("templates.own-words-are-told", "the template's words are lost")
class WordsLost(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except InvalidRequest as error:
            if "rejects the messages" in str(error):
                raise InvalidRequest("the template failed", field="messages") from error
            raise


@fault("templates.malformed-one-is-refused", "a template that is no Jinja is ignored")
class MalformedIgnored(BrokenEngine):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        malformed = str(config.get("chat_template", "")).endswith("{{ message }")
        return {name: value for name, value in config.items() if not (malformed and name == "chat_template")}


@fault("templates.model-without-one-refuses-chats", "a template is made up")
class MadeUp(BrokenEngine):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"chat_template": "{{ messages[0].content }}", **config} if config.get("model") else config
