"""Options that several commands share, and what they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyengine.request import SamplingParams

__all__ = [
    "SAMPLING",
    "Assignment",
    "engine_config",
    "engine_options",
    "merged",
    "require_fields",
    "sampling",
    "sampling_options",
]

F = TypeVar("F", bound="Callable[..., Any]")

#: Fields of SamplingParams that have options of their own.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")


class Assignment(click.ParamType["tuple[str, Any]"]):
    """``KEY=VALUE`` with a dotted key; the value is JSON, or else taken as a string."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, equals, text = str(value).partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            self.fail(f"{value!r} is not KEY=VALUE with a dotted key, such as kv_cache.block_size=16", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text
        except RecursionError:
            self.fail(f"{key}: its value is JSON that is nested too deeply", param, ctx)


def merged(fields: dict[str, Any], assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Lay dotted assignments over nested fields, in place; a later one wins.

    Raises:
        click.UsageError: a key goes through something that has no fields.
    """
    for key, value in assignments:
        *parents, last = key.split(".")
        place = fields
        for parent in parents:
            inner = place.get(parent)
            if inner is None:
                inner = place[parent] = {}
            if not isinstance(inner, dict):
                raise click.UsageError(f"{key}: {parent} is {inner!r} already, and has no fields")
            place = cast("dict[str, Any]", inner)
        place[last] = value
    return fields


def require_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse what ``Engine.load`` takes, and is no field of EngineConfig.

    Raises:
        click.UsageError: there is such a name.
    """
    for name in ("cls", "config", "engine"):
        if name in fields:
            raise click.UsageError(f"unknown field {name!r}: EngineConfig has none of that name")
    return fields


def engine_options(command: F) -> F:
    """``--engine``, ``--model``, ``--config`` and ``-o``."""
    options = (
        click.option("--engine", default="reference", show_default=True, help="Which engine; see `anyengine engines`."),
        click.option("--model", help="A folder, a Hugging Face hub id, or a name that the engine brings."),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A JSON file with fields of EngineConfig.",
        ),
        click.option(
            "-o",
            "--option",
            "assignments",
            type=Assignment(),
            multiple=True,
            help="A field of EngineConfig, dotted, its value JSON or a string: -o kv_cache.block_size=16. Wins over "
            "--config.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def engine_config(model: str | None, config: Path | None, assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of EngineConfig that the options give.

    Raises:
        click.UsageError: the file holds no JSON object, or the model is given twice.
    """
    base: Any = {}
    if config is not None:
        try:
            base = json.loads(config.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise click.UsageError(f"--config: {config} cannot be read as JSON: {error}") from error
        if not isinstance(base, dict):
            raise click.UsageError(f"--config: {config} does not hold a JSON object")
    assigned = list(assignments)
    if model is not None and any(key == "model" for key, _ in assigned):
        raise click.UsageError("give --model or -o model, not both")
    fields = require_fields(merged(cast("dict[str, Any]", base), assigned))
    return fields | ({} if model is None else {"model": model})


def sampling_options(command: F) -> F:
    """An option for each of :data:`SAMPLING`; those left out are the SDK's defaults."""
    options = (
        click.option("--temperature", type=float, help="0 takes the most likely token each time.  [default: 1.0]"),
        click.option("--top-p", type=float, help="Keep the most likely tokens up to this probability."),
        click.option("--top-k", type=int, help="Keep this many of the most likely tokens."),
        click.option("--min-p", type=float, help="Keep tokens at least this fraction as likely as the most likely."),
        click.option("--seed", type=int, help="Of the random draw; without one it varies."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sampling(**given: Any) -> SamplingParams:
    """Sampling parameters of the options that were given.

    Raises:
        InvalidRequest: a value is out of range.
    """
    from anyengine.request import SamplingParams  # noqa: PLC0415 heavy for `--help`

    return SamplingParams(**{name: value for name, value in given.items() if value is not None})
