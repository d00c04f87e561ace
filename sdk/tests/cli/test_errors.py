"""Errors are one line on stderr, a document with --json, and an exit code."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from anyengine.cli.output import Output


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["generate", "hi", "--temperature", "-1"], 2, "InvalidRequest"),
        (["generate", "hi", "--engine", "nothing"], 2, "UnknownEngine"),
        (["generate", "hi", "--engine", "broken"], 1, "PluginError"),
        (["generate", "hi", "--model", "./nowhere"], 1, "ModelNotFound"),
        (["engines", "nothing"], 2, "UnknownEngine"),
        (["chat", "--max-tokens", "x"], 2, "BadParameter"),
        (["quantize", "--model", "./nowhere", "--scheme", "int8-w8a16", "--output", "x"], 1, "ModelNotFound"),
        (["plugin", "new", "Not A Name"], 2, "InvalidConfig"),
    ],
)
def test_a_command_that_fails(anyengine, arguments, code, kind):
    plain = anyengine(*arguments)
    assert (plain.exit_code, plain.stdout, plain.stderr.count("\n")) == (code, "", 1)
    assert plain.stderr.startswith("error: ")
    machine = anyengine(*arguments, "--json")
    assert (machine.exit_code, json.loads(machine.stdout)["error"]["type"], machine.stderr) == (
        code,
        kind,
        plain.stderr,
    )


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["generate", "--nonsense"], ["plugin", "nonsense"], ["--nonsense"]]
)
def test_a_command_line_that_is_wrong_exits_with_2(anyengine, arguments):
    done = anyengine(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: No such ")


def test_the_field_is_named(anyengine):
    done = anyengine("generate", "hi", "-r", "sampling.top_p=2")
    assert "top_p" in done.stderr


def test_a_path_that_has_the_name_of_the_field_in_it_does_not_name_the_field(anyengine, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    done = anyengine("generate", "hi", "--model", str(folder))
    assert done.stderr == f"error: model: {folder} has no config.json; every checkpoint has one\n"


def test_no_traceback_unless_asked_for(anyengine):
    assert "Traceback" not in anyengine("generate", "hi", "--model", "./nowhere").stderr
    assert "Traceback" in anyengine("generate", "hi", "--model", "./nowhere", "--debug").stderr


def test_an_error_of_ours_that_nobody_expected_is_one_line_too(anyengine, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("anyengine.plugins.find_engines", fail)
    done = anyengine("engines")
    assert (done.exit_code, done.stderr) == (1, "error: unexpected RuntimeError: a bug; --debug shows where\n")


def test_the_help_names_the_exit_codes(anyengine):
    words = anyengine("--help").stdout.split()
    assert {"0", "1", "2", "130"} <= set(words)


def start(anyengine, *arguments: str) -> subprocess.Popen[bytes]:
    command, environment = anyengine.program
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_interrupted_generation_exits_with_130_and_says_nothing(anyengine):
    with start(anyengine, "generate", "--engine", "slow", "hi", "--max-tokens", "4000") as program:
        assert program.stdout.read(4) == b"HaHa"
        program.send_signal(signal.SIGINT)
        assert (program.wait(), program.stderr.read()) == (130, b"\n")


def test_an_interrupted_generation_of_the_reference_engine_does_too(anyengine):
    arguments = ["Once upon a time", "--max-tokens", "1000", "-r", "ignore_eos=true"]
    with start(anyengine, "generate", *arguments) as program:
        first = program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        assert (len(first), program.wait(timeout=60), program.stderr.read()) == (1, 130, b"\n")


def test_when_the_reader_leaves_the_generation_ends_quietly(anyengine):
    with start(anyengine, "generate", "--engine", "slow", "hi", "--max-tokens", "4000") as program:
        assert program.stdout.read(4) == b"HaHa"
        program.stdout.close()
        assert (program.wait(), program.stderr.read()) == (1, b"")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown"), [(Terminal, "a\ufffd[31mb\n\tc\ufffd\n"), (io.StringIO, "a\x1b[31mb\n\tc\x9b\n")]
)
def test_a_model_cannot_steer_the_terminal(monkeypatch, stream, shown):
    monkeypatch.setattr(sys, "stdout", stream())
    Output().text("a\x1b[31mb\n\tc\x9b")
    assert sys.stdout.getvalue() == shown


def test_a_person_sees_the_prompt_and_a_program_does_not(monkeypatch):
    for stream, shown in ((Terminal, "\x1b[2mOnce\x1b[0m"), (io.StringIO, "")):
        monkeypatch.setattr(sys, "stdout", stream())
        Output().quote("Once")
        assert sys.stdout.getvalue() == shown


HEAVY = {"anyio", "huggingface_hub", "jinja2", "msgspec", "pydantic", "rich", "tokenizers"}


def test_help_imports_nothing_heavy(anyengine):
    program = (
        "import sys\nfrom anyengine.cli import main\n"
        "try: main(['generate', '--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert "Usage:" in done.stdout
    assert {name.split(".")[0] for name in done.stderr.split()} & HEAVY == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense", "--json"],
        ["--nonsense", "--json"],
        ["env", "nonsense", "--json"],
        ["generate", "--nonsense", "--json"],
        ["generate", "--json", "hi", "--max-tokens"],
    ],
)
def test_a_command_line_that_cannot_be_read_is_reported_in_json_too(anyengine, arguments):
    done = anyengine(*arguments)
    assert (done.exit_code, set(json.loads(done.stdout))) == (2, {"error"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "hi", "-o", "engine=x"],
        ["generate", "hi", "-o", "cls=1"],
        ["chat", "-o", "config.model=x"],
        ["generate", "hi", "--model", "storyteller", "-o", "model=other"],
        ["explain", "reference", "reference", "hi", "--first", "engine=x"],
        ["engines", "--revision", "main"],
        ["engines", "nothing", "--model", "storyteller"],
    ],
)
def test_what_would_be_ignored_or_taken_for_something_else_is_refused(anyengine, arguments):
    done = anyengine(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("line", "code", "stdout", "stderr"),
    [
        ("generate --engine scripted hi --max-tokens 2 >&-", 0, "", ""),
        ("engines scripted 2>&- >/dev/null", 0, "", ""),
        ("generate <&-", 2, "", "error: give a PROMPT, or pipe one in (see anyengine generate --help)\n"),
        ("chat --engine scripted <&-", 0, "", ""),
        ("--help >/dev/full", 1, "", "error: [Errno 28] No space left on device\n"),
        ("engines nothing --json 2>/dev/null >/dev/full", 2, "", ""),
        ("engines nothing 2>/dev/full", 2, "", ""),
    ],
)
def test_streams_that_are_closed_or_full(anyengine, line, code, stdout, stderr):
    command, environment = anyengine.program
    shell = ["sh", "-c", f'"$@" {line}', "sh", *command]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


def test_what_a_checkpoint_or_an_error_says_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    Output().table(("A", "B"), [("a\x1b[31m", "b\x9b")])
    Output().error(OSError("c\x1b[31m"))
    assert "\x1b[31m" not in sys.stdout.getvalue() + sys.stderr.getvalue()
    assert "a\ufffd[31m" in sys.stdout.getvalue()
    assert sys.stderr.getvalue() == "error: c\ufffd[31m\n"
