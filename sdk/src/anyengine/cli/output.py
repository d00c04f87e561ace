"""What every command shares: printing for people and for machines, and errors as exit codes."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.exceptions import Exit, NoArgsIsHelpError

from anyengine.errors import AnyEngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import TextIO

__all__ = ["EXIT_CODES", "Cli", "Output", "common_options", "is_terminal"]

F = TypeVar("F", bound="Callable[..., Any]")

FAILURE, INTERRUPTED = 1, 130
#: Where a context keeps whether the command line has ``--json`` in it.
_JSON = "anyengine.json"
EXIT_CODES = (
    "Exit codes: 0 done, 1 something failed, 2 the command or a value in it is wrong, 130 interrupted. "
    'Errors are one line on stderr; with --json also a document {"error": …} on stdout.'
)
#: Everything of C0 and C1 but tab and newline: what a model writes must not steer a terminal.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is there; Python has None for a stream that was closed before it began."""
    return stream is not None and stream.isatty()


@dataclass(slots=True)
class Output:
    """How this run prints.

    Attributes:
        json: one JSON document on stdout instead of text.
        debug: tracebacks of errors.
    """

    json: bool = False
    debug: bool = False

    def document(self, data: object) -> None:
        """Print JSON on one line; structs and paths are understood, token ids become keys."""
        import msgspec  # noqa: PLC0415 heavy for `--help`

        try:
            encoded = msgspec.json.encode(data, enc_hook=str)
        except UnicodeEncodeError:  # half a character, from an argument in another encoding: only an escape can hold it
            encoded = json.dumps(msgspec.to_builtins(data, str_keys=True, enc_hook=str))
        click.echo(encoded)

    def text(self, text: str, *, end: str = "\n") -> None:
        """Print a model's text as it is; to a terminal without control characters."""
        shown = text.translate(_CONTROL) if is_terminal(sys.stdout) else text
        # click takes escape sequences out of what goes to no terminal, unless it is told that colours are wanted.
        click.echo(shown + end, nl=False, color=True)

    def quote(self, text: str) -> None:
        """Show a person what the text that follows belongs to; what is piped is that text alone."""
        if is_terminal(sys.stdout):
            click.echo(click.style(text.translate(_CONTROL), dim=True), nl=False)

    def note(self, text: str) -> None:
        """Say something aside, to a person only."""
        if is_terminal(sys.stderr):
            click.echo(click.style(text, dim=True), err=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows in columns: as wide as the terminal, or on as long lines as they need."""
        from rich.console import Console  # noqa: PLC0415 heavy for `--help`
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        terminal = is_terminal(sys.stdout)
        table = Table(*headings, box=None, pad_edge=False, header_style="bold", show_edge=False)
        table.columns[0].no_wrap = True
        for column in table.columns:
            column.overflow = "fold"  # on a narrow terminal nothing is left out
        for row in rows:
            # What a checkpoint or a plugin says of itself must not steer the terminal either.
            table.add_row(*(Text(cell.translate(_CONTROL) if terminal else cell) for cell in row))
        console = Console(width=None if terminal else 100_000)
        with console.capture() as captured:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

    @contextmanager
    def working(self, text: str) -> Generator[None]:
        """Show a person that something takes time."""
        if self.json or not is_terminal(sys.stderr):
            yield
            return
        from rich.console import Console  # noqa: PLC0415 heavy for `--help`

        with Console(stderr=True).status(text):
            yield

    def error(self, error: BaseException) -> int:
        """Print an error as one line, with its traceback if asked for.

        Returns:
            What to exit with.
        """
        if isinstance(error, AnyEngineError):
            message, facts, code = error.message, error.as_dict(), error.exit_code
        elif isinstance(error, click.ClickException):
            message, code = error.format_message(), error.exit_code
            if isinstance(error, click.UsageError) and error.ctx is not None:
                message = f"{message.removesuffix('.')} (see {error.ctx.command_path} --help)"
            facts = {"type": type(error).__name__, "message": message}
        elif isinstance(error, OSError):
            message, code = str(error), FAILURE
            facts = {"type": type(error).__name__, "message": message}
        else:
            facts = {"type": type(error).__name__, "message": str(error)}
            message, code = f"unexpected {facts['type']}: {error}; --debug shows where", FAILURE
        if self.debug:
            traceback.print_exception(error)
        if self.json:
            try:
                self.document({"error": facts})
            except OSError:  # a full disk, a reader that left: stderr and the exit code still tell
                _forget_stdout()
        field = getattr(error, "field", None)
        # A path that has the field's name in it does not name the field.
        says = field and re.search(rf"(?<![\w./-]){re.escape(field)}(?![\w/-])", message)
        named = f"{field}: " if field and not says else ""
        line = " ".join(f"{named}{message}".split())
        with suppress(OSError):
            click.echo("error: " + (line.translate(_CONTROL) if is_terminal(sys.stderr) else line), err=True)
        return code


class Cli(click.Group):
    """A group that turns every error under it into its line and its exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        json = _asks_for_json(args)
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except NoArgsIsHelpError:
            raise
        except BrokenPipeError as error:  # of --help and --version
            _forget_stdout()
            raise Exit(FAILURE) from error
        except (click.UsageError, OSError) as error:  # of the group itself; those of its commands come through invoke
            raise Exit(Output(json=json).error(error)) from error
        context.meta[_JSON] = json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Exit, NoArgsIsHelpError):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            code = INTERRUPTED
        except BrokenPipeError:
            _forget_stdout()
            code = FAILURE
        except Exception as error:  # noqa: BLE001 the last place that can say it in one line
            output = ctx.obj if isinstance(ctx.obj, Output) else Output()
            if isinstance(error, click.UsageError):  # perhaps of a command line that was not read to its --json
                output.json |= ctx.meta[_JSON]
            code = output.error(error)
        raise Exit(code)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


def _forget_stdout() -> None:
    """Whoever read our output has left, or its disk is full: the interpreter must not try again when it ends."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def common_options(command: F) -> F:
    """Add ``--json`` and ``--debug``, which every command has."""

    def remember(context: click.Context, option: click.Parameter, value: bool) -> None:  # noqa: FBT001 click calls it
        setattr(context.ensure_object(Output), option.name or "", value)

    def flag(name: str, text: str) -> Callable[[F], F]:
        # Eager: they hold for what goes wrong with other options too.
        return click.option(name, is_flag=True, is_eager=True, expose_value=False, callback=remember, help=text)

    return flag("--json", "Print JSON, for programs.")(flag("--debug", "Show tracebacks of errors.")(command))
