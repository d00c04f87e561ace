"""``anyengine plugin``: tools for those who write an engine's plugin."""

from __future__ import annotations

from pathlib import Path

import click

from anyengine.cli.output import Output, common_options

__all__ = ["plugin"]


@click.group(no_args_is_help=True)
def plugin() -> None:
    """Tools for authors of engine plugins."""


@plugin.command()
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where to write it; must not exist, or be empty.  [default: ./anyengine-NAME]",
)
@common_options
@click.pass_obj
def new(output: Output, /, name: str, directory: Path | None) -> None:
    """Write a plugin for the engine NAME: a package that works, with its tests.

    NAME is lower case, digits and single hyphens, such as my-engine. The package anyengine-NAME begins with a small
    engine of its own, which you replace by yours.
    """
    from anyengine.scaffold import write_plugin  # noqa: PLC0415 heavy for `--help`

    folder, files = write_plugin(name, directory)
    if output.json:
        output.document({"name": name, "directory": str(folder), "files": files})
        return
    for file in files:
        output.text(str(folder / file))
    output.text(f"\nNext: cd {folder}; README.md begins with the lines that install, run and certify it.")
