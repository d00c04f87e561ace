"""``anyengine chat``: a conversation, line by line."""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from anyengine.cli.options import engine_config, engine_options, sampling, sampling_options
from anyengine.cli.output import Output, common_options, is_terminal
from anyengine.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.outputs import Finish
    from anyengine.request import RequestOptions, SamplingParams
    from anyengine.sync import Engine

__all__ = ["chat"]

_HELP = "/reset forgets the conversation, /quit, Ctrl-D or Ctrl-C leaves; Ctrl-C during an answer stops it"


@click.command()
@engine_options
@click.option("--system", help="A system message at the start.")
@click.option("--max-tokens", type=int, help="Most tokens of an answer.  [default: the rest of the context]")
@sampling_options
@common_options
@click.pass_obj
def chat(
    output: Output,
    /,
    engine: str,
    model: str | None,
    config: Path | None,
    assignments: tuple[tuple[str, Any], ...],
    system: str | None,
    max_tokens: int | None,
    **params: Any,
) -> None:
    """Talk with a model. Each line is a turn, typed or piped; /reset forgets what was said, /quit leaves.

    Ctrl-C stops the current answer, which stays in the conversation as far as it was shown; at the prompt, it leaves.
    With --json each turn prints one line, named as by `anyengine generate --json`.
    """
    from anyengine.sync import Engine  # noqa: PLC0415 heavy for `--help`

    chosen = sampling(**params)
    fields = engine_config(model, config, assignments)
    with output.working(f"loading {fields.get('model') or engine}"):
        loaded = Engine.load(engine, **fields)
    with loaded:
        _Conversation(output, loaded, system, max_tokens, chosen).run()


class _Conversation:
    """The messages so far, and what is asked for each answer."""

    def __init__(
        self, output: Output, engine: Engine, system: str | None, max_tokens: int | None, params: SamplingParams
    ) -> None:
        self._output = output
        self._engine = engine
        self._start: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._start)
        self._max_tokens = max_tokens
        self._sampling = params
        self._typed = is_terminal(sys.stdin)

    def run(self) -> None:
        """Take turns until the input ends.

        The main thread reads and prints, where Ctrl-C arrives; the engine runs in another.
        """
        self._note(f"{self._engine.model.name} on {self._engine.name}; {_HELP}")
        while True:
            line = self._read()
            if line is None or line.strip() == "/quit":
                return
            if line.strip() == "/reset":
                self._messages = list(self._start)
                self._note("[forgotten]")
            elif line.strip():
                self._turn(line)

    def _read(self) -> str | None:
        if self._typed:
            # On stderr: a program that reads our output shall not find it there.
            click.echo("> ", nl=False, err=True)
            _wait_for_input()
        line = "" if sys.stdin is None else sys.stdin.readline()  # None: it was closed before we began
        if not line and self._typed:
            click.echo(err=True)
        return line.rstrip("\n") if line else None

    def _turn(self, line: str) -> None:
        message = {"role": "user", "content": line}
        try:
            answer = self._answer([*self._messages, message])
        except InvalidRequest as error:
            if not self._typed:
                raise
            # Most often the conversation has outgrown the context; a person can go on after /reset.
            self._output.error(error)
            return
        if answer:
            self._messages += [message, {"role": "assistant", "content": answer}]

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """Print an answer as it comes.

        Returns:
            What was printed, all of it or until it was stopped.
        """
        options: RequestOptions = {"sampling": self._sampling, "max_tokens": self._max_tokens}
        text, token_ids, finish = "", list[int](), None
        try:
            # A stream also for --json: leaving it is what ends the request in the engine.
            with self._engine.stream(messages=messages, **options) as stream:
                for chunk in stream:
                    text, token_ids, finish = text + chunk.text, token_ids + chunk.token_ids, chunk.finish
                    self._print(chunk.text, end="")
            self._print("")
        except KeyboardInterrupt:
            if not self._typed:
                raise
            self._print("")
            self._output.note("[stopped]")
        if self._output.json:
            self._output.document(_document(text, token_ids, finish))
        return text

    def _print(self, text: str, end: str = "\n") -> None:
        if not self._output.json:
            self._output.text(text, end=end)

    def _note(self, text: str) -> None:
        if self._typed and not self._output.json:
            self._output.note(text)


def _document(text: str, token_ids: list[int], finish: Finish | None) -> dict[str, Any]:
    """One turn, with the names that a completion has; an answer that was stopped has no end of its own."""
    return {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": finish.reason if finish else "abort",
        "stop_reason": finish.stop_reason if finish else None,
        "usage": finish.usage if finish else None,
        "timings": finish.timings if finish else None,
        "seed": finish.seed if finish else None,
    }


def _wait_for_input() -> None:
    """Return when the terminal has a line, or raise KeyboardInterrupt.

    A read by itself would miss an interrupt that comes just before it blocks; the descriptor that the interpreter
    writes to when a signal arrives cannot be missed.
    """
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    previous = signal.set_wakeup_fd(waker)
    try:
        poll = select.poll()  # select(2) knows no descriptors above 1023
        for source in (sys.stdin.fileno(), woken):
            poll.register(source, select.POLLIN)
        poll.poll()
    finally:
        signal.set_wakeup_fd(previous)
        os.close(woken)
        os.close(waker)
