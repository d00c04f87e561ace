"""``anyengine quantize``: a checkpoint with smaller weights."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["quantize"]


@click.command()
@click.option("--engine", default="reference", show_default=True, help="Whose toolchain does it.")
@click.option("--model", required=True, help="A folder, a Hugging Face hub id, or a name that the engine brings.")
@click.option("--revision", help="Of a hub model: branch, tag or commit.")
@click.option("--scheme", required=True, help="One of the engine's schemes: see `anyengine engines NAME`, quantize.")
@click.option("--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@common_options
@click.pass_obj
def quantize(output: Output, /, engine: str, model: str, revision: str | None, scheme: str, folder: Path) -> None:
    """Write a checkpoint with quantised weights.

    When it fails or is interrupted, nothing is left behind.
    """
    import anyio  # noqa: PLC0415 heavy for `--help`

    from anyengine.engine import Engine  # noqa: PLC0415

    async def run() -> Path:
        with _bar(output) as progress:
            return await Engine.quantize(
                engine, model=model, revision=revision, scheme=scheme, output=folder, progress=progress
            )

    made = anyio.run(run)
    if output.json:
        output.document({"engine": engine, "model": model, "scheme": scheme, "output": str(made)})
    else:
        output.text(str(made))


@contextmanager
def _bar(output: Output) -> Generator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; elsewhere nothing."""
    if output.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 heavy for `--help`
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("quantizing", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
