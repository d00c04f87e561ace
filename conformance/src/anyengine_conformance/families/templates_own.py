"""Chat templates of one's own: they replace the model's, get their variables, and are kept in their place."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine import InvalidConfig, InvalidRequest

from anyengine_conformance.check import OWN, check, family, variant
from anyengine_conformance.weights import weight_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine_conformance.context import Context

family("templates", "Chat templates")

#: What a hostile template does; a variable of the request chooses which.
_ATTACKS = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "imports": "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "code": "{{ namespace.__init__.__code__.co_consts }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "size": "{{ 'x' * 9999999999 }}",
    "growth": "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "recursion": "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
    "number": "{{ 9 ** (9 ** 9) }}",
}
_REACHING = ("classes", "globals", "imports", "code")
_ENDLESS = ("size", "growth", "recursion", "number")
TEMPLATE = (
    "{%- for name in [attack | default('')] -%}"
    + "".join(f"{{%- if name == '{name}' -%}}{source}{{%- endif -%}}" for name, source in _ATTACKS.items())
    + "{%- if name == 'raise' -%}{{ raise_exception('I know no such role') }}{%- endif -%}{%- endfor -%}"
    "{%- if data is defined -%}<{{ data | tojson }}>{%- endif -%}"
    "{%- for message in messages -%}[{{ message.role }}|{{ message.content }}]{%- endfor -%}"
    "{%- if add_generation_prompt -%}[assistant|{%- endif -%}"
)
VARIANT = variant("own-template", chat_template=TEMPLATE)
_CHAT = [{"role": "user", "content": "Hello"}]
_PLAIN = "[user|Hello][assistant|"
_SDK = "leave chat templates to the SDK: it renders them in a sandbox, with bounds on steps, time and size"


async def _attack(t: Context, name: str) -> str:
    t.asked(f"engine.apply_chat_template({_CHAT!r}), with the template {_ATTACKS.get(name, name)!r}")
    return await t.engine.apply_chat_template(_CHAT, chat_template_kwargs={"attack": name})


@check(
    "templates.own-template-replaces",
    must="`EngineConfig.chat_template` replaces the model's template.",
    advice=_SDK,
    variant=VARIANT,
)
async def own_template_replaces(t: Context) -> None:
    t.asked(f"engine.apply_chat_template({_CHAT!r})")
    t.equal(await t.engine.apply_chat_template(_CHAT), _PLAIN, "rendered text")
    answer = await t.generate(messages=_CHAT, max_tokens=2)
    ids = await t.engine.tokenize(_PLAIN, add_special_tokens=False)
    t.equal(answer.prompt_token_ids, ids, "prompt_token_ids")


@check(
    "templates.kwargs-arrive",
    must="`chat_template_kwargs` reach the template as they are, and change the prompt.",
    advice=_SDK,
    variant=VARIANT,
)
async def kwargs_arrive(t: Context) -> None:
    for data in ("text", 7, None, True, 1.5, ["a", {"b": None}], {"deep": {"er": [1, 2]}}):
        answer = await t.generate(messages=_CHAT, chat_template_kwargs={"data": data}, max_tokens=1)
        text = f"<{json.dumps(data)}>{_PLAIN}"
        ids = await t.engine.tokenize(text, add_special_tokens=False)
        t.equal(answer.prompt_token_ids, ids, f"prompt_token_ids, which are of {text!r}")


@check(
    "templates.kwargs-that-are-taken-are-refused",
    must="`chat_template_kwargs` under a name that the renderer uses itself, or that are no JSON data, are refused.",
    advice=_SDK,
    variant=VARIANT,
)
async def kwargs_that_are_taken_are_refused(t: Context) -> None:
    taken = ("messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "self", "__class__")
    for name in taken:
        with t.refused(InvalidRequest, field=f"chat_template_kwargs.{name}"):
            await t.generate(messages=_CHAT, chat_template_kwargs={name: "x"}, max_tokens=1)
    for value in (object(), {1, 2}, print):
        with t.refused(InvalidRequest, field="chat_template_kwargs.data"):
            await t.generate(messages=_CHAT, chat_template_kwargs={"data": value}, max_tokens=1)


@check(
    "templates.parts-become-text",
    must="Content in text parts reaches a template that expects text as one text, joined by line ends.",
    advice=_SDK,
    variant=VARIANT,
)
async def parts_become_text(t: Context) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = await t.generate(messages=[{"role": "user", "content": parts}], max_tokens=1)
    ids = await t.engine.tokenize("[user|one\ntwo][assistant|", add_special_tokens=False)
    t.equal(answer.prompt_token_ids, ids, "prompt_token_ids")


@check(
    "templates.python-is-out-of-reach",
    must="A template that reaches for attributes, globals or modules of Python gets nothing of them.",
    advice=_SDK,
    variant=VARIANT,
)
async def python_is_out_of_reach(t: Context) -> None:
    for name in _REACHING:
        with t.refused(InvalidRequest):
            await _attack(t, name)
    try:
        text = await _attack(t, "format")
    except InvalidRequest:
        pass
    else:
        t.expect("class" not in text, expected="a refusal, or nothing of Python in the text", seen=text)


@check(
    "templates.endless-ones-are-stopped",
    must="A template that makes text, numbers or calls without end is refused in bounded time.",
    advice=_SDK,
    variant=VARIANT,
    deadline=120,
)
async def endless_ones_are_stopped(t: Context) -> None:
    for name in _ENDLESS:
        await _stopped(t, name)
    t.equal(await t.engine.apply_chat_template(_CHAT), _PLAIN, "rendered text afterwards")


async def _stopped(t: Context, name: str) -> None:
    """Refused, and soon."""
    clock = asyncio.get_running_loop()
    started = clock.time()
    with t.refused(InvalidRequest, field="chat_template"):
        await _attack(t, name)
    took, most = clock.time() - started, 30.0 * max(1.0, t.time_factor)
    t.expect(took < most, expected=f"a refusal within {most:g} s", seen=f"{took:.1f} s for {_ATTACKS[name]}")


# Two seconds of a processor: an extension so that the selftest does not hold every fault against it.
@check(
    "templates.loops-are-stopped",
    must="A template that loops without end is refused in bounded time.",
    advice=_SDK,
    variant=VARIANT,
    deadline=120,
    tier="extension",
)
async def loops_are_stopped(t: Context) -> None:
    await _stopped(t, "loop")


@check(
    "templates.own-words-are-told",
    must="What a template says with `raise_exception` is an InvalidRequest with its words.",
    advice=_SDK,
    variant=VARIANT,
)
async def own_words_are_told(t: Context) -> None:
    t.asked("engine.generate(messages=…), with a template that raises 'I know no such role'")
    try:
        await t.engine.generate(messages=_CHAT, chat_template_kwargs={"attack": "raise"}, max_tokens=1)
    except InvalidRequest as error:
        t.equal(error.field, "messages", "field of the error")
        t.expect("I know no such role" in str(error), expected="the template's own words", seen=str(error))
    else:
        raise t.fail(expected="InvalidRequest", seen="no error")


@check(
    "templates.malformed-one-is-refused",
    must="A `chat_template` that is no Jinja is an InvalidConfig with that field, at load or at the first chat.",
    advice=_SDK,
    variant=OWN,
    deadline=120,
)
async def malformed_one_is_refused(t: Context) -> None:
    with t.refused(InvalidConfig, field="chat_template"):
        async with t.load(chat_template="{% for message in %}{{ message }") as engine:
            await engine.apply_chat_template(_CHAT)


def _without_template(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """The same checkpoint, by links, without its chat template."""
    folder.mkdir()
    # Weights that lie in a folder of their own (onnx/*.onnx) are linked with that folder.
    linked = {source / file.relative_to(source).parts[0] for file in weight_files(source, patterns)}
    for file in source.iterdir():
        if file in linked:
            (folder / file.name).symlink_to(file.resolve())
        elif file.name == "tokenizer_config.json":
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            config.pop("chat_template", None)
            (folder / file.name).write_text(json.dumps(config), encoding="utf-8")
        elif file.is_file() and file.name not in ("chat_template.jinja", "chat_template.json"):
            shutil.copy(file, folder / file.name)


@check(
    "templates.model-without-one-refuses-chats",
    must="A model without a chat template refuses messages with an error whose field is `chat_template`.",
    advice="make no template up: what the model was trained on is not known",
    variant=OWN,
    deadline=120,
)
async def model_without_one_refuses_chats(t: Context) -> None:
    async def find() -> Path:
        async with t.load() as engine:
            return engine.model.path

    source = await t.once("security.checkpoint", find)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        _without_template(source, folder, t.weights)
        async with t.load(model=str(folder)) as engine:
            t.asked(f"engine.generate(messages={_CHAT!r}), of a model without a chat template")
            with t.refused(InvalidConfig, field="chat_template"):
                await engine.generate(messages=_CHAT, max_tokens=1)
            answer = await engine.generate(t.prompt, max_tokens=1)
            t.equal(len(answer.token_ids), 1, "tokens with a plain prompt")
