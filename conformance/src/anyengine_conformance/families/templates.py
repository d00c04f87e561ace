"""Chat templates: the SDK renders them, for all engines alike, in a sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine import InvalidConfig, InvalidRequest

from anyengine_conformance.check import check, family

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("templates", "Chat templates")

_SDK = "leave messages to the SDK: a backend gets the token ids of the rendered text, and adds nothing to them"
_CHAT = [
    {"role": "user", "content": "Tell me a story about a dog."},
    {"role": "assistant", "content": "Once there was a dog."},
    {"role": "user", "content": "And then?"},
]


async def rendered(t: Context, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """What ``apply_chat_template`` gives; skips where the model has no template."""
    t.asked(f"engine.apply_chat_template({messages!r})")
    try:
        return await t.engine.apply_chat_template(messages, chat_template_kwargs=kwargs or None)
    except InvalidConfig as error:
        raise t.skip(f"the model has no chat template: {error}") from error


def _by_tokenizer(t: Context, text: str) -> list[int]:
    """The checkpoint's own tokenizer, read beside the SDK."""
    from tokenizers import Tokenizer  # noqa: PLC0415 heavy

    tokenizer: Any = Tokenizer.from_file(str(t.engine.model.tokenizer_path / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


@check(
    "templates.messages-are-the-rendered-text",
    must="A chat reaches the engine as the token ids of its rendered text, to which no special tokens are added.",
    advice=_SDK,
)
async def messages_are_the_rendered_text(t: Context) -> None:
    ids = _by_tokenizer(t, await rendered(t, _CHAT))
    answer = await t.generate(messages=_CHAT, max_tokens=2)
    t.equal(answer.prompt_token_ids, ids, "prompt_token_ids with messages=…")
    again = await t.generate(_CHAT, max_tokens=2)
    t.equal(again.prompt_token_ids, ids, "prompt_token_ids with the messages as the prompt")
    t.equal(answer.usage.prompt_tokens, len(ids), "usage.prompt_tokens")


@check(
    "templates.tokenize-takes-messages",
    must="`tokenize` and `count_tokens` of a chat give what `generate` sends.",
    advice=_SDK,
)
async def tokenize_takes_messages(t: Context) -> None:
    ids = _by_tokenizer(t, await rendered(t, _CHAT))
    t.equal(await t.engine.tokenize(_CHAT), ids, "engine.tokenize(messages)")
    t.equal(await t.engine.count_tokens(_CHAT), len(ids), "engine.count_tokens(messages)")


@check(
    "templates.stream-takes-messages",
    must="A stream takes messages as `generate` does.",
    advice=_SDK,
)
async def stream_takes_messages(t: Context) -> None:
    ids = _by_tokenizer(t, await rendered(t, _CHAT))
    streamed = await t.stream(messages=_CHAT, max_tokens=2)
    finish = streamed.finish
    t.equal(finish and finish.usage.prompt_tokens, len(ids), "usage.prompt_tokens of the stream")


def _template_of(t: Context) -> tuple[str, dict[str, str]]:
    """The model's template and special tokens, read from the checkpoint beside the SDK."""
    folder = t.engine.model.tokenizer_path
    file = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text(encoding="utf-8") if jinja.exists() else config.get("chat_template")
    if not isinstance(source, str):
        raise t.skip("the model has no chat template, or several")
    special: dict[str, Any] = {}
    for name, value in config.items():
        if name.endswith("_token") and value:
            special[name] = value["content"] if isinstance(value, dict) else value
    return source, {name: value for name, value in special.items() if isinstance(value, str)}


@check(
    "templates.rendering-is-the-models",
    must="The text is what the model's own template makes of the messages, the assistant's turn opened at the end.",
    advice="leave rendering to the SDK; it renders with add_generation_prompt=True",
)
async def rendering_is_the_models(t: Context) -> None:
    source, special = _template_of(t) if t.engine.config.chat_template is None else (t.engine.config.chat_template, {})
    from jinja2.exceptions import TemplateError  # noqa: PLC0415 only here
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for chat in (_CHAT[:1], _CHAT):
        values = {**special, "messages": chat, "tools": None, "documents": None}
        try:
            template = environment.from_string(source)
            opened = template.render(**values, add_generation_prompt=True)
        except TemplateError as error:
            raise t.skip(f"plain Jinja does not render the model's template: {error}") from error
        t.equal(await rendered(t, chat), opened, "rendered text")


@check(
    "templates.generation-prompt-is-there",
    must="The rendered chat ends behind the last message, with the opening of the assistant's turn if there is one.",
    advice="render with add_generation_prompt=True, and cut nothing off the end",
)
async def generation_prompt_is_there(t: Context) -> None:
    text = await rendered(t, _CHAT)
    last = text.rfind("And then?")
    t.expect(last >= 0, expected="the last message in the text", seen=text)
    source = t.engine.config.chat_template or _template_of(t)[0]
    if "add_generation_prompt" in source:
        behind = text[last + len("And then?") :]
        t.expect(
            bool(behind.strip()), expected="the opening of the assistant's turn behind the last message", seen=text
        )


@check(
    "templates.system-message-comes-first",
    must="A system message stands in the text, before the user's.",
    advice="pass all messages to the template, whatever their role",
)
async def system_message_comes_first(t: Context) -> None:
    chat = [{"role": "system", "content": "You are a pirate."}, *_CHAT]
    try:
        text = await rendered(t, chat)
    except InvalidRequest as error:
        raise t.skip(f"the model's template takes no system message: {error}") from error
    places = [text.find(str(message["content"])) for message in chat]
    t.expect(-1 not in places and places == sorted(places), expected=f"all of {chat}, in their order", seen=f"{text!r}")
    answer = await t.generate(messages=chat, max_tokens=1)
    t.equal(answer.prompt_token_ids, _by_tokenizer(t, text), "prompt_token_ids")


@check(
    "templates.special-spellings-are-the-tokenizers",
    must="Content that spells a special token becomes what the model's tokenizer makes of the rendered text.",
    advice="send the ids of the whole rendered text; neither escape content nor tokenise it by itself",
)
async def special_spellings_are_the_tokenizers(t: Context) -> None:
    ends = [token for token in sorted(t.engine.model.eos_token_ids) if token < t.engine.info.vocab_size]
    spellings = [await t.engine.detokenize([token], skip_special_tokens=False) for token in ends]
    for spelling in (*spellings, "<s>", "<|im_start|>system", "[INST]"):
        chat = [{"role": "user", "content": f"before {spelling} after"}]
        ids = _by_tokenizer(t, await rendered(t, chat))
        answer = await t.generate(messages=chat, max_tokens=1)
        t.equal(answer.prompt_token_ids, ids, f"prompt_token_ids with {spelling!r} in the content")


@check(
    "templates.malformed-messages-are-refused",
    must="A message without a role or content, or with parts other than text, is refused by its place.",
    advice="leave messages to the SDK, which checks them before anything else",
)
async def malformed_messages_are_refused(t: Context) -> None:
    await rendered(t, _CHAT)
    picture = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"content": "no role"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 7}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": "Look:"}, picture]}, "messages[1].content[1].type"),
    )
    for message, place in wrong:
        with t.refused(InvalidRequest, field=place):
            await t.generate(messages=[_CHAT[0], message], max_tokens=1)
