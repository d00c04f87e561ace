"""``anyengine conformance parity``: the three steps of the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from anyengine.cli.options import Assignment, merged
from anyengine.cli.output import Output, common_options
from click.exceptions import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["parity"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_OPTION = click.option(
    "-o", "--option", "assignments", type=Assignment(), multiple=True, help="A field of EngineConfig, dotted."
)


@click.group()
def parity() -> None:
    """Compare the greedy answers of engines with an oracle, in one table."""


@parity.command()
@click.argument("engine")
@click.option("--model", required=True, help="A folder, a Hugging Face hub id, or a name that the engine brings.")
@click.option("--output", "file", type=_FILE, required=True, help="Where the answers go; those there are kept.")
@click.option("--label", help="Name of the row in the table.  [default: the engine's]")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--at-once", type=click.IntRange(min=1), default=100, show_default=True, help="Prompts sent together.")
@_OPTION
@common_options
@click.pass_obj
def answer(
    output: Output,
    /,
    engine: str,
    *,
    model: str,
    file: Path,
    label: str | None,
    max_tokens: int,
    at_once: int,
    assignments: tuple[tuple[str, Any], ...],
) -> None:
    """Ask ENGINE a hundred prompts, and write its answers as they come."""
    import anyio  # noqa: PLC0415 heavy for `--help`

    from anyengine_conformance.parity_table.answers import answer as ask  # noqa: PLC0415

    config = merged({"model": model}, assignments)

    async def run() -> None:
        await ask(
            engine,
            config,
            file,
            label=label or engine,
            max_tokens=max_tokens,
            at_once=at_once,
            say=_say(output),
        )

    anyio.run(run)


@parity.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", required=True, help="The same checkpoint, for the oracle.")
@click.option("--oracle", default="reference", show_default=True, help="Engine that scores, in float32.")
@click.option("--output", "file", type=_FILE, required=True, help="Where the report goes; rows there are kept.")
@_OPTION
@common_options
@click.pass_obj
def judge(
    output: Output,
    /,
    files: tuple[Path, ...],
    *,
    model: str,
    oracle: str,
    file: Path,
    assignments: tuple[tuple[str, Any], ...],
) -> None:
    """Score the answers in FILES by an oracle, and write a report; exits 1 if there is a defect."""
    import anyio  # noqa: PLC0415 heavy for `--help`

    from anyengine_conformance.parity_table.judging import Report  # noqa: PLC0415
    from anyengine_conformance.parity_table.judging import judge as score  # noqa: PLC0415
    from anyengine_conformance.parity_table.page import table  # noqa: PLC0415

    async def run() -> Report:
        return await score(files, file, oracle=oracle, model=model, config=merged({}, assignments), say=_say(output))

    report = anyio.run(run)
    if output.json:
        output.document(report)
    else:
        output.text(table(report), end="")
    if any(row.all.defects for row in report.rows):
        raise Exit(1)


@parity.command()
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common_options
@click.pass_obj
def page(output: Output, /, document: Path) -> None:
    """Write into DOCUMENT the tables of the reports that it names, relative to this folder."""
    from anyengine_conformance.parity_table.page import written  # noqa: PLC0415 heavy for `--help`

    text = document.read_text(encoding="utf-8")
    new = written(text, Path())
    document.write_text(new, encoding="utf-8")
    if output.json:
        output.document({"document": document, "changed": new != text})


def _say(output: Output) -> Callable[[str], None]:
    """Lines for people: with --json they go where errors go."""
    return lambda line: click.echo(line, err=output.json)
