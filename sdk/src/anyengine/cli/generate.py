"""``anyengine generate``: one prompt, one answer."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from anyengine.cli.options import SAMPLING, Assignment, engine_config, engine_options, merged, sampling_options
from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.engine import Engine
    from anyengine.outputs import Completion, Finish
    from anyengine.request import GenerateRequest

__all__ = ["generate"]

#: Tokens if nobody says how many, and the context has room for them.
DEFAULT_MAX_TOKENS = 128


@click.command()
@click.argument("prompt", required=False)
@engine_options
@click.option("--max-tokens", type=int, help=f"Most tokens to generate.  [default: {DEFAULT_MAX_TOKENS}]")
@sampling_options
@click.option("--stop", multiple=True, help="End at this text; may be repeated.")
@click.option("-n", "--n", type=int, help="Independent answers.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities of each token and of this many others.")
@click.option("--json-schema", help="The answer fits this JSON Schema: a file, or the schema itself.")
@click.option("--regex", help="The answer matches this regular expression.")
@click.option("--choice", multiple=True, help="The answer is one of these; may be repeated.")
@click.option("--grammar", help="The answer follows this Lark grammar: a file, or the grammar itself.")
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message, through the model's template.")
@click.option("--system", help="A system message before it; implies --chat.")
@click.option(
    "-r",
    "--request",
    "fields",
    type=Assignment(),
    multiple=True,
    help="Any field of GenerateRequest, dotted: -r sampling.presence_penalty=0.5, -r max_tokens=null (the rest of the "
    "context), -r prompt=[1,2,3] instead of PROMPT.",
)
@click.option(
    "--stream/--no-stream", default=None, help="As it comes, or at once. Text streams by itself, JSON does not."
)
@common_options
@click.pass_obj
def generate(output: Output, /, prompt: str | None, *, stream: bool | None, **options: Any) -> None:
    """Continue PROMPT, or answer it with --chat.

    Without PROMPT, or with "-", it is read from standard input; one line break at its end is left out. On a terminal
    the prompt is shown before its continuation; elsewhere stdout has the answer only.
    """
    import anyio  # noqa: PLC0415 heavy for `--help`

    if options["logprobs"] is not None and not output.json:
        raise click.UsageError("--logprobs are shown with --json only")
    request = _request(prompt, options)
    if stream and request.n > 1 and not output.json:
        raise click.UsageError("--stream with several answers is for --json: as text they would mix")
    config = engine_config(options["model"], options["config"], options["assignments"])
    streams = stream if stream is not None else not output.json and request.n == 1
    limited = "max_tokens" not in request.model_fields_set
    anyio.run(partial(_run, output, options["engine"], config, request, streams=streams, limited=limited))


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if sys.stdin is None or (given is None and sys.stdin.isatty()):  # None: it was closed before we began
        raise click.UsageError("give a PROMPT, or pipe one in")
    return sys.stdin.read().removesuffix("\n")


def _request(prompt: str | None, options: dict[str, Any]) -> GenerateRequest:
    """The request that the options describe; a mistake shows before an engine is loaded."""
    from anyengine.request import GenerateRequest  # noqa: PLC0415 heavy for `--help`

    fields: dict[str, Any] = {
        name: options[name] for name in ("max_tokens", "n", "logprobs") if options[name] is not None
    }
    if options["stop"]:
        fields["stop"] = list(options["stop"])
    fields["sampling"] = {name: options[name] for name in SAMPLING if options[name] is not None}
    fields |= _structured(options)
    _require_once(fields, [key for key, _ in options["fields"]])
    chat = options["chat"] or options["system"] is not None
    if {"prompt", "messages"} & {key for key, _ in options["fields"]}:
        if prompt is not None or chat:
            raise click.UsageError("-r prompt and -r messages stand instead of PROMPT, --chat and --system")
    elif chat:
        system = [] if options["system"] is None else [{"role": "system", "content": options["system"]}]
        fields["messages"] = [*system, {"role": "user", "content": _prompt(prompt)}]
    else:
        fields["prompt"] = _prompt(prompt)
    params: Any = merged(fields, options["fields"])["sampling"]
    if isinstance(params, dict):
        _number_keys(cast("dict[str, Any]", params))
    return GenerateRequest(**fields)


def _require_once(fields: dict[str, Any], assigned: list[str]) -> None:
    """Refuse a field that an option says and ``-r`` as well: one of the two would be dropped."""
    said = [
        *(name for name, value in fields.items() if not isinstance(value, dict)),
        *(f"{name}.{part}" for name in ("sampling", "structured") for part in fields.get(name, ())),
    ]
    for key in assigned:
        for name in said:
            if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}."):
                option = name.rpartition(".")[2].replace("_", "-")
                raise click.UsageError(f"-r {key} and --{option} both say {name}; give one of the two")


def _number_keys(params: dict[str, Any]) -> None:
    """JSON has no numbers as keys: those of ``logit_bias`` are token ids."""
    if isinstance(params.get("logit_bias"), dict):
        bias = cast("dict[str, Any]", params["logit_bias"])
        params["logit_bias"] = {int(key) if key.isdecimal() else key: value for key, value in bias.items()}


def _structured(options: dict[str, Any]) -> dict[str, Any]:
    schema, grammar = options["json_schema"], options["grammar"]
    given = {
        "json_schema": None if schema is None else _content("--json-schema", schema, "{"),
        "regex": options["regex"],
        "choice": list(options["choice"]) or None,
        "grammar": None if grammar is None else _content("--grammar", grammar, ":"),
    }
    kinds = {name: value for name, value in given.items() if value is not None}
    return {"structured": kinds} if kinds else {}


def _content(option: str, value: str, mark: str) -> str:
    """The content of the file of that name, or else the value itself if it has the mark of what is asked for."""
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if mark in value:
            return value
        raise click.UsageError(
            f"{option}: {value!r} is no readable file, and without {mark!r} it is not the text itself: {error}"
        ) from error


async def _run(
    output: Output, name: str, config: dict[str, Any], request: GenerateRequest, *, streams: bool, limited: bool
) -> None:
    from anyengine.engine import Engine  # noqa: PLC0415 heavy for `--help`

    async with AsyncExitStack() as stack:
        with output.working(f"loading {config.get('model') or name}"):
            engine = await stack.enter_async_context(Engine.load(name, **config))
        if limited:
            request = await _limited(engine, request)
        if streams:
            await _stream(output, engine, request)
        else:
            _show(output, engine, request, await engine.generate(request))


async def _limited(engine: Engine, request: GenerateRequest) -> GenerateRequest:
    """The request with the default length, or what the context leaves of it."""
    prompt = request.prompt if request.messages is None else request.messages
    if prompt is None:
        return request
    used = await engine.count_tokens(prompt, chat_template_kwargs=request.chat_template_kwargs)
    room = max(1, engine.info.max_model_len - used)
    return request.model_copy(update={"max_tokens": max(request.min_tokens, min(DEFAULT_MAX_TOKENS, room))})


async def _stream(output: Output, engine: Engine, request: GenerateRequest) -> None:
    async with engine.stream(request) as stream:
        _lead(output, request)
        async for chunk in stream:
            if output.json:
                output.document(chunk)
                continue
            output.text(chunk.text, end="")
            if chunk.finish is not None:
                output.text("")
                _summary(output, chunk.finish.reason, chunk.finish)


def _lead(output: Output, request: GenerateRequest) -> None:
    """Show a person the text that the answer continues."""
    if isinstance(request.prompt, str) and not output.json:
        output.quote(request.prompt)


def _show(output: Output, engine: Engine, request: GenerateRequest, answer: Completion) -> None:
    if output.json:
        output.document({"engine": engine.name, "model": engine.model.name, **document(answer)})
        return
    choices: Sequence[Completion] = answer.choices
    for number, choice in enumerate(choices, 1):
        if len(choices) > 1:
            output.text(f"--- {number} of {len(choices)} ---")
        _lead(output, request)
        output.text(choice.text)
        _summary(output, choice.finish_reason, choice)


def document(answer: Completion) -> dict[str, Any]:
    """A completion as JSON-able data; log-probabilities and alternatives only where they were asked for."""
    import msgspec  # noqa: PLC0415 heavy for `--help`

    data: dict[str, Any] = msgspec.to_builtins(answer, str_keys=True)
    data["alternatives"] = [document(alternative) for alternative in answer.alternatives]
    optional = ("logprobs", "prompt_logprobs", "alternatives")
    return {name: value for name, value in data.items() if name not in optional or value}


def _summary(output: Output, reason: str, end: Finish | Completion) -> None:
    usage, timings = end.usage, end.timings
    output.note(
        f"[{reason}; {usage.prompt_tokens} + {usage.completion_tokens} tokens; {timings.total:.2f} s; seed {end.seed}]"
    )
