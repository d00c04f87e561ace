"""Commands that other packages bring, by entry points of the group ``anyengine.commands``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import click

from anyengine.cli.output import Cli
from anyengine.errors import PluginError

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["COMMANDS", "ExtensibleCli"]

#: Entry-point group: name of the command → a ``click.Command``.
COMMANDS = "anyengine.commands"
#: Commands of ours that come in packages of their own.
_PACKAGES = {"conformance": "anyengine-conformance"}


class ExtensibleCli(Cli):
    """Finds commands of other packages when they are named, or for ``--help``; its own always win."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(point.name for point in entry_points(group=COMMANDS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for point in entry_points(group=COMMANDS, name=cmd_name):
            return _load(point)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name in _PACKAGES and self.get_command(ctx, name) is None:
            ctx.fail(f"the command {name!r} comes with a package of its own: pip install {_PACKAGES[name]}")
        return super().resolve_command(ctx, args)


def _load(point: EntryPoint) -> click.Command:
    """The command behind an entry point; a broken one says so when it is called, and harms no other."""
    try:
        command = point.load()
    except Exception as error:  # noqa: BLE001 whatever a foreign module raises must not harm the others
        return _broken(point, f"{type(error).__name__}: {error}")
    if not isinstance(command, click.Command):
        return _broken(point, f"{point.value} is a {type(command).__name__}, not a click.Command")
    return command


def _broken(point: EntryPoint, reason: str) -> click.Command:
    package = f" of {point.dist.name}" if point.dist is not None else ""

    def fail(arguments: tuple[str, ...]) -> NoReturn:
        del arguments
        raise PluginError(f"the command {point.name!r}{package} is broken: {reason}")

    return click.Command(
        point.name,
        callback=fail,
        params=[click.Argument(["arguments"], nargs=-1)],
        context_settings={"ignore_unknown_options": True},
        help=f"Broken: {reason}",
    )
