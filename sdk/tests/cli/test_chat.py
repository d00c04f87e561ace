"""``anyengine chat``: piped, and on a terminal of its own."""

import json
import os
import pty
import signal
import subprocess
from contextlib import contextmanager

import pytest


def chat(anyengine, lines: str, *arguments: str):
    return anyengine("chat", "--engine", "scripted", *arguments, stdin=lines)


def said(anyengine, lines: str, *arguments: str) -> list[str]:
    done = chat(anyengine, lines, *arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout.splitlines()


def prompts(anyengine) -> list[str]:
    return [request.prompt_text for request in anyengine.engine.plugin.loaded[-1].requests]


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


START = "<|im_start|>assistant\n"


def test_each_line_is_a_turn_and_the_conversation_grows(anyengine):
    assert said(anyengine, "one\n\ntwo\n") == ["Hello", "Hello"]
    first = turn("user", "one")
    assert prompts(anyengine) == [first + START, first + turn("assistant", "Hello") + turn("user", "two") + START]


def test_reset_forgets_all_but_the_system_message(anyengine):
    assert said(anyengine, "one\n/reset\ntwo\n", "--system", "be kind") == ["Hello", "Hello"]
    assert prompts(anyengine)[1] == turn("system", "be kind") + turn("user", "two") + START


def test_quit_leaves(anyengine):
    assert said(anyengine, "one\n/quit\ntwo\n") == ["Hello"]


def test_json_has_a_line_for_each_answer(anyengine):
    answers = [json.loads(line) for line in said(anyengine, "one\ntwo\n", "--json")]
    assert [(answer["text"], answer["finish_reason"]) for answer in answers] == [("Hello", "stop")] * 2
    assert all(answer["usage"]["completion_tokens"] == len(answer["token_ids"]) for answer in answers)


def test_a_conversation_that_outgrows_the_context_ends_with_the_reason(anyengine):
    done = chat(anyengine, "one\n" + "x" * 50 + "\n", "-o", "max_model_len=60")
    assert (done.exit_code, done.stdout) == (2, "Hello\n")
    assert done.stderr.startswith("error: prompt: has ")


class Terminal:
    """A program and the terminal it runs on."""

    def __init__(self, program: subprocess.Popen[bytes], terminal: int) -> None:
        self.program = program
        self._terminal = terminal
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until ``text`` is shown; what came before it, and it."""
        while text.encode() not in self._seen:
            try:
                self._seen += os.read(self._terminal, 4096)
            except OSError as error:  # the program has ended
                raise AssertionError(f"instead of {text!r} it showed {self._seen.decode()!r}") from error
        shown, _, self._seen = self._seen.partition(text.encode())
        return shown.decode() + text

    def interrupt(self) -> None:
        self.program.send_signal(signal.SIGINT)


@contextmanager
def on_a_terminal(anyengine, *arguments: str):
    ours, theirs = pty.openpty()
    command, environment = anyengine.program
    with subprocess.Popen(
        [*command, "chat", *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as program:
        os.close(theirs)
        try:
            yield Terminal(program, ours)
        finally:
            program.kill()
            os.close(ours)


@pytest.fixture
def slow(anyengine):
    with on_a_terminal(anyengine, "--engine", "slow") as terminal:
        terminal.wait_for("> ")
        yield terminal


def test_interrupting_an_answer_stops_it_and_the_conversation_goes_on(slow):
    slow.type("hi\n")
    slow.wait_for("HaHa")
    slow.interrupt()
    slow.wait_for("[stopped]")
    slow.wait_for("> ")
    slow.type("again\n")
    slow.wait_for("HaHa")
    slow.interrupt()
    slow.wait_for("> ")
    slow.type("/quit\n")
    assert slow.program.wait() == 0


def test_interrupting_an_answer_and_then_the_prompt_leaves(slow):
    slow.type("hi\n")
    slow.wait_for("HaHa")
    slow.interrupt()
    slow.wait_for("> ")
    slow.interrupt()
    assert slow.program.wait() == 130


def test_interrupting_at_the_prompt_leaves(slow):
    slow.interrupt()
    assert slow.program.wait() == 130


def test_the_end_of_input_leaves(slow):
    slow.type("\x04")
    assert slow.program.wait() == 0


def test_a_person_can_go_on_after_a_conversation_that_was_too_long(anyengine):
    with on_a_terminal(anyengine, "--engine", "scripted", "-o", "max_model_len=60") as terminal:
        terminal.wait_for("> ")
        terminal.type("x" * 60 + "\n")
        terminal.wait_for("error: prompt")
        terminal.wait_for("> ")
        terminal.type("hi\n")
        terminal.wait_for("Hello")
        terminal.type("/quit\n")
        assert terminal.program.wait() == 0
