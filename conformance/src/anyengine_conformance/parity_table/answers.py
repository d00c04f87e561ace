"""What one configuration of an engine answers, written down as it comes."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine import Engine, EngineConfig, GenerateRequest, InvalidConfig, SamplingParams
from msgspec import Struct

from anyengine_conformance import environment
from anyengine_conformance.parity_table.prompts import fingerprint, prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anyengine_conformance.parity_table.prompts import Prompt

__all__ = ["Answer", "Configuration", "Given", "answer", "read"]

#: Levels at which the log-probabilities of a greedy answer are the model's.
_RAW = ("raw", "raw-unless-structured")


class Configuration(Struct, kw_only=True):
    """Who answered, and how: the first line of a file.

    Attributes:
        label: name of the row in the table.
        engine: its name.
        engine_version: of the engine library; None where that is unknown.
        model: name of the checkpoint.
        config: fields of EngineConfig, without the model and where the engine runs.
        dtype: of the weights.
        device: in the engine's words.
        logprobs: level of log-probabilities that it declares.
        eos_token_ids: that end a text.
        prompts: fingerprint of the prompts.
        max_tokens: asked for.
        at_once: prompts that were sent together.
        date: of the first answer.
        environment: of the program that asked.
    """

    label: str
    engine: str
    engine_version: str | None
    model: str
    config: dict[str, Any]
    dtype: str | None
    device: str | None
    logprobs: str
    eos_token_ids: list[int]
    prompts: str
    max_tokens: int
    at_once: int
    date: str
    environment: dict[str, Any]


class Answer(Struct):
    """One line.

    Attributes:
        id: of the prompt.
        prompt_token_ids: that the engine was given.
        token_ids: that it chose.
        finish_reason: why it ended.
        logprobs: of the chosen tokens, in nats; None where the engine does not give the model's own.
    """

    id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None


class Given(Struct):
    """A whole file."""

    configuration: Configuration
    answers: list[Answer]


def read(file: Path) -> Given:
    """Read a file of answers.

    Raises:
        InvalidConfig: it is none.
    """
    try:
        first, *lines = file.read_bytes().splitlines()
        answers = [msgspec.json.decode(each, type=Answer) for each in lines]
        return Given(msgspec.json.decode(first, type=Configuration), answers)
    except ValueError as error:  # msgspec's are
        raise InvalidConfig(f"{file} is no file of answers: {error}") from error


async def answer(
    engine: str,
    config: Mapping[str, Any],
    file: Path,
    *,
    label: str,
    max_tokens: int = 64,
    at_once: int = 100,
    say: Callable[[str], None] = print,
) -> None:
    """Ask an engine every prompt that the file has no answer to yet; each answer is written when it is there.

    Args:
        engine: its name.
        config: fields of EngineConfig.
        file: one JSON document a line, the configuration first.
        label: name of the row in the table.
        max_tokens: of each answer.
        at_once: prompts that are sent together.
        say: is told what happens.

    Raises:
        InvalidConfig: the file holds the answers of another configuration.
    """
    old = _read_old(file)
    there = {found.id for found in old.answers} if old is not None else set[str]()
    missing = [prompt for prompt in prompts() if prompt.id not in there]
    if not missing:
        say(f"{label}: all answers are there")
        return
    async with Engine.load(engine, config=EngineConfig(**config)) as loaded:
        now = _configuration(loaded, config, label, max_tokens, at_once)
        if old is None:
            _add(file, now)
        else:
            _require_same(old.configuration, now, file)
        say(f"{label}: {engine} {now.engine_version}, {now.dtype} on {now.device}; {len(missing)} prompts")
        turns = asyncio.Semaphore(at_once)

        async def ask(prompt: Prompt) -> None:
            async with turns:
                line = await _answer(loaded, prompt, max_tokens, logprobs=now.logprobs in _RAW)
            _add(file, line)

        await asyncio.gather(*(ask(prompt) for prompt in missing))
    say(f"{label}: done")


async def _answer(engine: Engine, prompt: Prompt, max_tokens: int, *, logprobs: bool) -> Answer:
    given: dict[str, Any] = {"prompt" if isinstance(prompt.content, str) else "messages": prompt.content}
    request = GenerateRequest(
        **given,
        sampling=SamplingParams(temperature=0),
        max_tokens=max_tokens,
        logprobs=0 if logprobs else None,
    )
    found = await engine.generate(request)
    values = None if found.logprobs is None else [entry.logprob for entry in found.logprobs]
    return Answer(prompt.id, found.prompt_token_ids, found.token_ids, found.finish_reason, values)


def _configuration(
    engine: Engine, config: Mapping[str, Any], label: str, max_tokens: int, at_once: int
) -> Configuration:
    machine = environment.gather(engine.name)
    return Configuration(
        label=label,
        engine=engine.name,
        engine_version=environment.engine_version(engine.name, engine.config),
        model=engine.model.name.rstrip("/").rsplit("/", 1)[-1],
        config={name: value for name, value in config.items() if name not in ("model", "environment", "env")},
        dtype=engine.info.dtype,
        device=engine.info.device,
        logprobs=engine.capabilities.logprobs,
        eos_token_ids=sorted(engine.model.eos_token_ids),
        prompts=fingerprint(),
        max_tokens=max_tokens,
        at_once=at_once,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        environment=msgspec.to_builtins(machine),
    )


def _read_old(file: Path) -> Given | None:
    """What is there already; a line that was cut off in the middle is taken away."""
    if not file.exists():
        return None
    there = file.read_bytes()
    whole = there[: there.rfind(b"\n") + 1]
    if whole != there:
        file.write_bytes(whole)
    return read(file) if whole else None


def _add(file: Path, line: Configuration | Answer) -> None:
    """One write a line: who is killed leaves whole lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        stream.write(msgspec.json.encode(line) + b"\n")


def _require_same(found: Configuration, now: Configuration, file: Path) -> None:
    """Answers of two configurations never mix in one file."""
    for name in set(Configuration.__struct_fields__) - {"date", "environment"}:
        if getattr(found, name) != getattr(now, name):
            raise InvalidConfig(
                f"{file} holds answers with {name} {getattr(found, name)!r}, and this is {getattr(now, name)!r}: "
                "write to another file, or delete it"
            )
