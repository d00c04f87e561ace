"""The command line: ``anyengine …``.

One module a command; :mod:`anyengine.cli.output` prints and turns errors into exit codes for all of them, and
:mod:`anyengine.cli.plugins` finds the commands of other packages. Modules import what is heavy where they use it, so
that ``--help`` is quick.
"""

from __future__ import annotations

import click

from anyengine.cli.chat import chat
from anyengine.cli.engines import engines
from anyengine.cli.env import env
from anyengine.cli.explain import explain
from anyengine.cli.generate import generate
from anyengine.cli.output import EXIT_CODES, Output
from anyengine.cli.plugin import plugin
from anyengine.cli.plugins import ExtensibleCli
from anyengine.cli.quantize import quantize

__all__ = ["main"]


@click.group(cls=ExtensibleCli, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="anyengine")
@click.pass_context
def main(context: click.Context) -> None:
    """One API over LLM inference engines."""
    context.obj = Output()


for command in (generate, chat, engines, env, explain, quantize, plugin):
    main.add_command(command)
