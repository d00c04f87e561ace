"""``anyengine env …``, and ``anyengine engines`` with environments."""

import json
import sys
from importlib import import_module

import pytest
from anyengine import Engine, SamplingParams
from anyengine.cli import main
from anyengine.environments import find_environment
from click.testing import CliRunner

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def run():
    return lambda *arguments, stdin=None: CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def run_json(run):
    def done(*arguments):
        result = run(*arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        return json.loads(result.stdout)

    return done


def test_the_way_of_an_added_interpreter(run, run_json, interpreter):
    there = interpreter().ours().engine()
    added = run_json("env", "add", "mine", "--python", str(there.python))
    assert (added["name"], added["status"], added["created"], added["python"]) == (
        "mine",
        "ready",
        False,
        str(there.python),
    )
    [listed] = run_json("env", "list")
    assert listed == added
    assert {"name": "simulated", "engine_version": "1.0", "reason": None} in listed["engines"]
    table = run("env", "list").stdout.splitlines()
    assert [line.split()[:2] for line in table] == [["NAME", "STATUS"], ["mine", "ready"]]
    assert run_json("env", "remove", "mine", "--yes") == {"name": "mine", "removed": None}
    assert run_json("env", "list") == []


def test_without_any_the_commands_say_how_one_is_made(run):
    for command in ("list", "doctor"):
        done = run("env", command)
        assert (done.exit_code, done.stdout) == (
            0,
            "there is no environment; `anyengine env create ENGINE` makes one\n",
        )


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 130, ["mine"]), ("", 130, ["mine"]), ("y\n", 0, [])])
def test_a_removal_is_asked_for(run, interpreter, names, answer, code, left):
    run("env", "add", "mine", "--python", str(interpreter().ours().python))
    done = run("env", "remove", "mine", stdin=answer)
    assert (done.exit_code, names()) == (code, left)
    assert "Forget mine?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["env", "remove", "nothing"], 2, "InvalidConfig"),
        (["env", "remove", "a/b", "--yes"], 2, "InvalidConfig"),
        (["env", "doctor", "nothing"], 2, "InvalidConfig"),
        (["env", "add", "a/b", "--python", sys.executable], 2, "InvalidConfig"),
        (["env", "add", "mine", "--python", "/nowhere"], 1, "EnvironmentFailed"),
        (["env", "add", "mine"], 2, "MissingParameter"),
        (["env", "create", "no-such-engine"], 2, "InvalidConfig"),
        (["env", "create", "reference", "--variant", "nothing"], 2, "InvalidConfig"),
        (["env", "create", "reference", "--from", "/nowhere"], 2, "InvalidConfig"),
        (["env", "create", "reference", "--python", "/nowhere"], 1, "EnvironmentFailed"),
    ],
)
def test_a_command_that_fails(run, arguments, code, kind):
    plain, machine = run(*arguments), run(*arguments, "--json")
    assert (plain.exit_code, plain.stdout, plain.stderr.count("\n")) == (code, "", 1)
    assert (machine.exit_code, json.loads(machine.stdout)["error"]["type"]) == (code, kind)


def test_an_environment_that_is_broken_is_listed_as_such_and_the_doctor_exits_with_1(run, run_json, interpreter):
    there = interpreter().ours()
    run("env", "add", "mine", "--python", str(there.python))
    there.python.unlink()
    [listed] = run_json("env", "list")
    assert (listed["status"], listed["reason"]) == ("broken", f"there is no interpreter {there.python}")
    done = run("env", "doctor", "--json")
    [report] = json.loads(done.stdout)
    assert (done.exit_code, report["environment"], report["healthy"]) == (1, "mine", False)
    plain = run("env", "doctor", "mine")
    assert (plain.exit_code, plain.stdout.splitlines()[1].split()[:2]) == (1, ["interpreter", "problem"])


def test_engines_of_environments_are_listed_with_where_they_run(run, run_json, interpreter):
    run("env", "add", "mine", "--python", str(interpreter().ours().engine().python))
    listed = {(engine["name"], engine["environment"]): engine["status"] for engine in run_json("engines")}
    assert listed["simulated", "mine"] == "ready"
    assert listed["reference", None] == "ready"
    assert ("reference", "mine") not in listed  # what runs here needs no environment
    shown = run_json("engines", "simulated")
    assert (shown["environment"], shown["capabilities"]["sampling"]) == ("mine", ["min_p", "seed", "top_k"])
    [line] = [line for line in run("engines").stdout.splitlines() if line.startswith("simulated")]
    assert line.split() == ["simulated", "ready", "anyengine-simulated", "1.0", "1.0", "mine"]


@pytest.fixture
def not_able_here(interpreter, monkeypatch):
    """The simulated engine is installed here as well, and cannot run."""
    monkeypatch.syspath_prepend(str(interpreter().ours().engine("no GPU").packages))
    import_module("simulated_engine")  # says something, once
    yield
    del sys.modules["simulated_engine"]


@pytest.mark.usefixtures("not_able_here")
def test_an_engine_that_cannot_run_here_says_which_environments_have_it(run, run_json, interpreter):
    told = []
    for name in ("one", "two"):
        run("env", "add", name, "--python", str(interpreter().ours().engine().python))
        told += [(each["environment"], each["reason"]) for each in run_json("engines") if each["name"] == "simulated"]
    assert told == [
        (None, "no GPU; the environment one has it"),
        ("one", None),
        (None, "no GPU; the environments one, two have it"),
        ("one", None),
        ("two", None),
    ]
    lines = [line.split(maxsplit=2) for line in run("engines").stdout.splitlines()]
    assert ["simulated", "here", told[2][1]] in lines


def test_of_an_engine_that_runs_somewhere_a_model_needs_no_place_where_it_does_not(run, run_json, interpreter):
    for name, unavailable in (("bad", "no GPU"), ("good", None)):
        run("env", "add", name, "--python", str(interpreter().ours().engine(unavailable).python))
    places = [
        (engine["environment"], engine["runs"])
        for engine in run_json("engines", "--model", "storyteller")["engines"]
        if engine["name"] == "simulated"
    ]
    assert places == [("good", "not declared")]


# -- for real ---------------------------------------------------------------------------------------


@pytest.mark.timeout(300)  # pip, on a machine that may have other things to do
async def test_an_environment_of_the_reference_engine_is_made_by_pip_and_generates(run, run_json):
    """As a user does it: pip and its configuration, our packages from where they came from."""
    made = run_json("env", "create", "reference")
    assert (made["name"], made["variant"], made["status"]) == ("reference", "cpu", "ready")
    assert run("env", "doctor", "reference").exit_code == 0
    async with Engine.load("reference", environment="reference") as there, Engine.load("reference") as here:
        answers = [await engine.generate("Once upon a time", max_tokens=8, sampling=GREEDY) for engine in (there, here)]
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.timeout(300)
async def test_an_environment_of_another_python_generates(run, other_python):
    python = other_python("3.13", "3.12")
    done = run("env", "create", "reference", "--python", python, "--name", "other", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert find_environment("other").described.python_version.startswith(("3.12.", "3.13."))
    async with Engine.load("reference", environment="other") as engine:
        assert (await engine.generate("Once upon a time", max_tokens=4)).finish_reason == "length"
