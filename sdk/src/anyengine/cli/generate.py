"""``anyengine generate``: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anyengine.cli.options import Assignment, engine_config, engine_options, merged, sampling_options
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
@click.option(
    "--grammar",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The answer follows the Lark grammar in this file.",
)
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message, through the model's template.")
@click.option("--system", help="A system message before it; implies --chat.")
@click.option(
    "-r",
    "--request",
    "fields",
    type=Assignment(),
    multiple=True,
    help="Any field of GenerateRequest, dotted: -r sampling.min_p=0.1, -r max_tokens=null (the rest of the context).",
)
@click.option("--stream/--no-stream", default=None, help="As it comes, or at once. Text streams by itself, JSON does not.")
@common_options
@click.pass_obj
def generate(output: Output, /, prompt: str | None, *, stream: bool | None, **options: Any) -> None:
    """Continue PROMPT, or answer it with --chat.

    Without PROMPT, or with "-", it is read from standard input; one line break at its end is left out.
    """
    import anyio  # noqa: PLC0415 heavy for `--help`

    if options["logprobs"] is not None and not output.json:
        raise click.UsageError("--logprobs are shown with --json only")
    request = _request(_prompt(prompt), options)
    if stream and request.n > 1 and not output.json:
        raise click.UsageError("--stream with several answers is for --json: as text they would mix")
    config = engine_config(options["model"], options["config"], options["assignments"])
    streams = stream if stream is not None else not output.json and request.n == 1
    limit = "max_tokens" not in request.model_fields_set
    anyio.run(_run, output, options["engine"], config, request, streams, limit)


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise click.UsageError("give a PROMPT, or pipe one in")
    return click.get_text_stream("stdin").read().removesuffix("\n")


def _request(prompt: str, options: dict[str, Any]) -> GenerateRequest:
    """The request that the options describe; a mistake shows before an engine is loaded."""
    from anyengine.request import GenerateRequest, SamplingParams, Structured  # noqa: PLC0415 heavy for `--help`

    names = ("temperature", "top_p", "top_k", "seed")
    fields: dict[str, Any] = {
        name: options[name] for name in ("max_tokens", "n", "logprobs") if options[name] is not None
    }
    if options["stop"]:
        fields["stop"] = list(options["stop"])
    fields["sampling"] = {name: options[name] for name in names if options[name] is not None}
    fields["structured"] = _structured(options)
    if options["chat"] or options["system"] is not None:
        system = [] if options["system"] is None else [{"role": "system", "content": options["system"]}]
        fields["messages"] = [*system, {"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    fields = merged(fields, options["fields"])
    for name, model in (("sampling", SamplingParams), ("structured", Structured)):
        if fields.pop(name, None):
            pass
    return GenerateRequest(**fields)


def _structured(options: dict[str, Any]) -> dict[str, Any] | None:
    given: dict[str, Any] = {"regex": options["regex"], "choice": list(options["choice"]) or None}
    schema, grammar = options["json_schema"], options["grammar"]
    if schema is not None:
        given["json_schema"] = _text(schema)
    if grammar is not None:
        given["grammar"] = grammar.read_text(encoding="utf-8")
    return {name: value for name, value in given.items() if value is not None} or None
