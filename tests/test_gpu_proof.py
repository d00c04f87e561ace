"""The steps of a proof: each is run once, under its limit, and what was cut off is run again."""

import asyncio
import json
import os
import re
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
from anyengine.environments import add_environment
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.gpu_proof.cli import _left, _link, _merge, _near, _register, main  # noqa: E402 the repository is no package
from tools.gpu_proof.machine import cores  # noqa: E402
from tools.gpu_proof.plan import Plan  # noqa: E402
from tools.gpu_proof.rehearsal import rehearsal  # noqa: E402
from tools.gpu_proof.runner import Runner  # noqa: E402
from tools.gpu_proof.step import Step  # noqa: E402

PYTHONS = {"vllm": sys.executable, "lmdeploy": sys.executable, "compressor": sys.executable}


def step(tmp_path, code, *, limit=30.0, name="made", **fields):
    report = tmp_path / f"{name}.json"
    return Step(name, (sys.executable, "-c", code, str(report)), report, limit, **fields)


async def run(*steps, gpus=(3,), ends=None, at_once=2, again=False, measuring=()):
    await Runner(list(steps), gpus, at_once, ends, again=again, measuring=measuring).run()


def left(made, *, failed=False, again=False):
    return _left([made], failed=failed, again=again) == [made]


REPORTS = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}');"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (REPORTS, "passed"),
        (REPORTS + "sys.exit(1)", "failed"),
        (REPORTS + "sys.exit(7)", "exit 7"),
        ("", "no report"),
    ],
)
async def test_a_step_that_ended_is_not_left_unless_asked_for(tmp_path, code, outcome):
    made = step(tmp_path, code)
    assert (made.outcome(), left(made)) == (None, True)
    await run(made)
    assert made.outcome() == outcome
    assert (left(made), left(made, failed=True), left(made, again=True)) == (False, outcome != "passed", True)


async def test_what_another_proof_has_done_meanwhile_is_not_done_again(tmp_path):
    seen = tmp_path / "seen.txt"
    note = f"open({str(seen)!r}, 'a').write('once ');"
    one, other = (step(tmp_path, REPORTS + note, name="shared") for _ in range(2))
    await run(one)
    await run(other)
    assert (seen.read_text(), other.outcome()) == ("once ", "passed")
    await run(other, again=True)
    assert seen.read_text() == "once once "


async def test_another_command_is_another_step(tmp_path):
    await run(step(tmp_path, REPORTS))
    assert step(tmp_path, REPORTS + "pass").outcome() is None


async def test_a_step_beyond_its_limit_is_cut_off_with_what_it_started_and_left_for_the_next_time(tmp_path):
    child = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).wait()"
    made = step(tmp_path, REPORTS + child, limit=2.0)
    started = time.monotonic()
    await run(made)
    assert time.monotonic() - started < 60
    assert (made.outcome(), left(made)) == ("cut off", True)


async def test_a_step_whose_runner_is_gone_was_cut_off(tmp_path):
    made = step(tmp_path, REPORTS + "import time; time.sleep(600)", limit=600.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run(made), 1)
    assert (made.outcome(), left(made)) == ("cut off", True)


async def test_what_was_written_is_gone_on_from_but_not_when_all_begins_again(tmp_path):
    made = step(tmp_path, "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(1)")
    await run(made)
    await run(made)
    assert made.report.read_text() == "xx"
    await run(made, again=True)
    assert made.report.read_text() == "x"


async def test_a_step_without_the_folder_that_it_makes_has_not_run_and_one_runs_without_an_old_one(tmp_path):
    folder = tmp_path / "made-by-it"
    folder.mkdir()
    made = step(tmp_path, REPORTS + f"pathlib.Path({str(folder)!r}).mkdir()", makes=folder)
    await run(made)
    assert made.outcome() == "passed"
    folder.rmdir()
    assert made.outcome() is None


async def test_what_a_step_prints_can_be_its_report(tmp_path):
    made = step(tmp_path, "import sys; print('said'); print('grumbled', file=sys.stderr)", prints=True)
    await run(made)
    assert (made.report.read_text(), made.report.with_suffix(".log").read_text()) == ("said\n", "grumbled\n")


async def test_nothing_is_started_when_no_time_is_left(tmp_path):
    made = step(tmp_path, REPORTS)
    await run(made, ends=time.monotonic())
    assert (made.outcome(), made.report.exists()) == (None, False)


async def test_a_step_runs_on_its_gpu_and_its_record_names_no_place_of_the_machine(tmp_path):
    made = step(
        tmp_path, "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    await run(made)
    assert made.report.read_text() == "3"
    record = json.loads(made.record.read_text())
    assert (record["step"], record["gpu"], record["command"][-1]) == ("made", 3, "made.json")
    assert str(tmp_path) not in made.record.read_text()


async def test_a_step_for_several_gpus_sees_them_after_all_others_and_does_not_run_on_fewer(tmp_path):
    seen = tmp_path / "seen.txt"
    note = f"import os; open({str(seen)!r}, 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ');"
    both = step(tmp_path, REPORTS + note, name="both", gpus=2)
    await run(both, step(tmp_path, REPORTS + note, name="one"))
    assert (seen.read_text().split(), both.outcome()) == (["3"], None)
    await run(both, gpus=(3, 5, 7))
    assert (seen.read_text().split(), json.loads(both.record.read_text())["gpu"]) == (["3", "3,5"], [3, 5])


async def test_each_gpu_has_a_share_of_the_processors_and_all_have_both(tmp_path):
    note = "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1], 'w')); "
    gone = "import time; time.sleep(1)"  # so that the other GPU takes the other one
    one, other = (step(tmp_path, note + gone, name=name, alone=True) for name in ("one", "other"))
    both = step(tmp_path, note, name="both", gpus=2, alone=True)
    await run(one, other, both, gpus=(3, 5))
    shares = [set(json.loads(made.report.read_text())) for made in (one, other, both)]
    assert shares[2] == shares[0] | shares[1] <= os.sched_getaffinity(0)
    assert len(shares[0]) == len(shares[1])
    assert not shares[0] & shares[1] or len(os.sched_getaffinity(0)) == 1


@pytest.mark.parametrize("numbering", [("0,4", "1,5", "2,6", "3,7"), ("0-1", "2-3", "4-5", "6-7")])
def test_gpus_have_whole_cores_and_what_is_measured_one_thread_of_each(tmp_path, monkeypatch, numbering):
    siblings = [{int(number) for number in re.findall(r"\d", each)} for each in numbering]
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (core,) = (each for each, threads in zip(numbering, siblings, strict=True) if number in threads)
        (folder / "thread_siblings_list").write_text(f"{core}\n")
    monkeypatch.setattr("tools.gpu_proof.machine._TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    runner = Runner([], (3, 5), 1, None)
    shares = [runner._processors([gpu], alone=False) for gpu in (3, 5)]
    assert shares == [siblings[0] | siblings[1], siblings[2] | siblings[3]]
    assert runner._processors([3, 5], alone=False) == set(range(8))
    assert runner._processors([5], alone=True) == {min(siblings[2]), min(siblings[3])}
    assert cores({1, 99}) == [[1], [99]]  # of the second nothing is known


def test_a_gpu_that_measures_leaves_the_others_what_it_does_not_take_and_shares_less_afterwards(monkeypatch):
    monkeypatch.setattr("tools.gpu_proof.runner.cores", lambda _: [[number] for number in range(32)])
    runner = Runner([], (3, 5), 11, None, measuring=(5,))
    assert runner._processors([3], alone=False) == set(range(22))
    assert runner._processors([5], alone=True) == set(range(22, 32))
    assert [runner._slots(gpu) for gpu in (3, 5)] == [11, 5]
    few = Runner([], (3, 5), 11, None, measuring=(3,))
    monkeypatch.setattr("tools.gpu_proof.runner.cores", lambda _: [[0], [1]])
    assert [few._processors([gpu], alone=False) for gpu in (3, 5)] == [{0}, {1}]
    monkeypatch.setattr("tools.gpu_proof.runner.cores", lambda _: [[0]])
    assert [few._processors([gpu], alone=False) for gpu in (3, 5)] == [{0}, {0}]


def test_steps_come_in_the_order_that_they_are_asked_for_each_once(tmp_path):
    words = ["--model", str(tmp_path), "--results", str(tmp_path), "--list"]
    found = CliRunner().invoke(
        main, [*words, "--steps", "concurrency/", "--steps", "draft", "--steps", "concurrency/vllm"]
    )
    names = [line.split()[0] for line in found.output.splitlines()]
    assert names == ["concurrency/vllm", "concurrency/turbomind", "concurrency/lmdeploy-pytorch", "draft", "parity"]


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """``listed(words)``: what ``--list`` came to, where anything that it makes would lie in ``tmp_path / "made"``."""
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr("tools.gpu_proof.cli.ROOT", made)
    monkeypatch.setattr("tempfile.tempdir", str(made))
    monkeypatch.setenv("ANYENGINE_HOME", str(made / "home"))
    (tmp_path / "checkpoint").mkdir()

    def run(*words, model=True):
        of = ["--model", str(tmp_path / "checkpoint")] if model else ["--rehearse"]
        found = CliRunner().invoke(main, [*of, "--results", str(made / "results"), "--list", *words])
        assert list(made.iterdir()) == []
        return found

    return run


@pytest.mark.parametrize("model", [True, False], ids=["proof", "rehearsal"])
def test_a_list_makes_nothing(listed, model):
    found = listed(*(["--environment", f"vllm={sys.executable}"] if model else []), model=model)
    assert found.exit_code == 0
    assert "draft" in [line.split()[0] for line in found.output.splitlines()]


def test_an_interpreter_may_be_named_by_a_command(listed, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    found = listed("--environment", f"vllm={Path(sys.executable).name}", "--steps", "overhead/vllm/1")
    assert [line.split()[0] for line in found.output.splitlines()] == ["overhead/vllm/1", "parity"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vllm=no-such-command"], "there is no interpreter .*no-such-command; name its path, or a command on PATH"),
        (["vllm"], "say NAME=PYTHON"),
        (["vllm="], "say NAME=PYTHON"),
        ([f"vllm={sys.executable}", f"vllm={sys.executable}"], "vllm is named twice"),
    ],
)
def test_an_environment_that_is_none_is_refused(listed, words, message):
    found = listed(*(part for word in words for part in ("--environment", word)))
    assert (found.exit_code, type(found.exception)) == (2, SystemExit)
    assert re.search(message, " ".join(found.output.split()))


def test_a_rehearsal_has_its_own_environments(listed):
    found = listed("--environment", f"vllm={sys.executable}", model=False)
    assert (found.exit_code, "a rehearsal has its own" in found.output) == (2, True)


def test_an_interpreter_that_cannot_be_an_environment_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path / "home"))
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    with pytest.raises(click.UsageError, match=f"--environment vllm={other}: "):
        _register({"vllm": str(other)})
    add_environment("vllm", sys.executable)
    _register({"vllm": sys.executable})
    with pytest.raises(click.UsageError, match=f"an environment vllm already, of {sys.executable}; name that"):
        _register({"vllm": str(other)})


def test_the_checkpoint_has_a_name_within_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.gpu_proof.cli.ROOT", tmp_path / "root")
    monkeypatch.setattr("tools.gpu_proof.plan.ROOT", tmp_path / "root")
    model, other = tmp_path / "checkpoint", tmp_path / "other" / "checkpoint"
    for folder in (model, other, tmp_path / "root" / "own"):
        folder.mkdir(parents=True)
    assert _near(model) == ".cache/checkpoint"  # as it will be
    _link(model)
    assert (tmp_path / "root" / ".cache" / "checkpoint").samefile(model)
    assert (_near(model), _near(other), _near(tmp_path / "root" / "own")) == (".cache/checkpoint", str(other), "own")


def test_tests_of_two_devices_are_steps_for_two_gpus_and_no_part_of_the_whole(tmp_path):
    plan = Plan("model", tmp_path, PYTHONS)
    every = plan.steps()
    two = [each.name for each in every if each.gpus == 2]
    assert two == [f"two-gpus/{engine}/tensor_parallel_over_two_devices" for engine in ("vllm", "lmdeploy")]
    parts = [part.name for whole in plan.wholes(every).values() for part in whole]
    assert not set(two) & set(parts)


async def test_what_others_need_ends_before_them_and_what_measures_speed_comes_last(tmp_path):
    seen = tmp_path / "seen.txt"
    note = f"open({str(seen)!r}, 'a').write(pathlib.Path(sys.argv[1]).stem + ' ');"
    await run(
        step(tmp_path, REPORTS + note, name="speed", alone=True, needs=("draft",)),
        step(tmp_path, REPORTS + note, name="answers", needs=("draft",)),
        step(tmp_path, "import time; time.sleep(0.5);" + REPORTS + note, name="draft"),
    )
    assert seen.read_text().split() == ["draft", "answers", "speed"]


def test_not_all_gpus_measure_for_somebody_makes_what_is_measured(tmp_path):
    words = ["--model", str(tmp_path), "--results", str(tmp_path), "--gpu", "0", "--gpu", "1"]
    for measuring in (["0", "1"], ["2"]):
        more = [word for gpu in measuring for word in ("--measure-on", gpu)]
        found = CliRunner().invoke(main, [*words, *more])
        assert (found.exit_code, "--measure-on" in found.output) == (2, True)


async def test_a_gpu_that_measures_does_that_first_and_shares_afterwards(tmp_path):
    slow = REPORTS + "import time; time.sleep(0.5)"
    alone = [step(tmp_path, slow, name=f"alone-{number}", alone=True) for number in (1, 2)]
    shared = [step(tmp_path, slow, name=f"shared-{number}") for number in range(8)]
    await run(*shared, *alone, gpus=(3, 5), at_once=1, measuring=(5,))
    records = [json.loads(made.record.read_text()) for made in (*alone, *shared)]
    assert [record["gpu"] for record in records[:2]] == [5, 5]
    assert {record["gpu"] for record in records[2:]} == {3, 5}


async def test_what_a_step_needs_but_nobody_asked_for_is_not_waited_for(tmp_path):
    made = step(tmp_path, REPORTS, needs=("draft",))
    await run(made)
    assert made.outcome() == "passed"


def test_the_table_is_made_of_the_answers_that_are_there(tmp_path):
    plan = Plan("model", tmp_path, {"vllm": "python"})
    every = plan.steps()
    answers = [each for each in every if each.name.startswith("answers/")]
    assert len(answers) > 4
    answers[0].write("passed", 1.0, 0)
    answers[1].write("cut off", 1.0, 0)
    command = plan.judging(every).command
    assert [word for word in command if word.endswith(".jsonl")] == [str(answers[0].report)]


@pytest.mark.parametrize(("ratio", "met"), [(1.0, True), (0.9, False)])
def test_pairs_of_all_parts_are_judged_together_also_of_those_that_were_cut_off(tmp_path, capfd, ratio, met):
    plan = Plan("model", tmp_path, {"vllm": "python"})
    every = plan.steps()
    parts = plan.wholes(every)[tmp_path / "overhead-vllm.json"]
    assert [part.name for part in parts] == [f"overhead/vllm/{number}" for number in (1, 2, 3, 4)]
    hows = [f"{name}.{how}" for name in ("here", "worker") for how in ("generate", "stream")]
    pairs = {
        "throughput_ratio": {how: [ratio] * 7 for how in hows},
        "added_ms_to_first_token": {"here": [0.1] * 7, "worker": [0.1] * 7},
        "native_tokens_per_second": {"native": [9.0] * 14},
        "processor_us_per_token": {how: [5.0] * 7 for how in (*hows, "native.generate", "native.stream")},
    }
    made = {
        "environment": {"date": "2026-11-29", "commit": "abcdef1"},
        "engine": "vllm",
        "model": "m",
        "settings": {},
        "earlier": [],
    }
    parts[0].report.parent.mkdir()
    for part, outcome in zip(parts, ("passed", "cut off"), strict=False):
        part.report.write_text(json.dumps({**made, "figures": {"pairs": pairs}}))
        part.write(outcome, 1.0, 0)
    assert _merge(plan, every, [parts[0]]) is met
    assert _merge(plan, every, [])  # of those that ran now none misses anything
    whole = json.loads((tmp_path / "overhead-vllm.json").read_text())
    assert whole["figures"]["pairs"]["throughput_ratio"]["here.stream"] == [ratio] * 14
    assert "overhead-vllm.json: 2 of 4 parts are there" in capfd.readouterr().out


# -- commands ---------------------------------------------------------------------------------------------------------


class Understood(BaseException):  # no program of ours catches those
    """A command line was read, and what it asks for would begin now."""


def plans(tmp_path):
    return Plan("model", tmp_path, PYTHONS), rehearsal(tmp_path, PYTHONS)


@pytest.mark.parametrize("which", [0, 1], ids=["proof", "rehearsal"])
def test_every_step_has_a_name_and_a_report_of_its_own_and_names_files_that_are_there(tmp_path, which):
    every = plans(tmp_path)[which].steps()
    assert len({each.name for each in every}) == len({each.report for each in every}) == len(every)
    files = [word for each in every for word in each.command if word.endswith((".py", ".toml"))]
    assert [word for word in files if not (ROOT / word).exists()] == []


@pytest.mark.parametrize("which", [0, 1], ids=["proof", "rehearsal"])
def test_every_command_line_is_understood(tmp_path, which, monkeypatch):
    import argparse

    from anyengine import EngineConfig
    from anyengine.cli.options import merged

    read = argparse.ArgumentParser.parse_args

    def stop(*given, **named):
        read(*given, **named)
        raise Understood

    def begin(command, context):
        """Fields of an engine are looked at before anything is loaded."""
        EngineConfig(**merged({}, context.params.get("assignments", ())))
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(click.Command, "invoke", begin)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    plan = plans(tmp_path)[which]
    plan = replace(plan, model="plugins/reference/src/anyengine_reference/models/storyteller")
    every = plan.steps()
    for each in every:
        if each.name.startswith("answers/"):
            each.report.parent.mkdir(exist_ok=True)
            each.report.write_text("")
            each.write("passed", 1.0, 0)
    for each in [*every, plan.judging(every)]:
        program, *words = each.command[1:]
        if each.name.startswith(("tests/", "two-gpus/")):
            continue  # pytest reads its command line when the rehearsal collects
        module = program == "-m"
        monkeypatch.setattr(sys, "argv", words if module else [program, *words])
        sys.path.insert(0, str((ROOT / program).parent))
        start = runpy.run_module if module else runpy.run_path
        with pytest.raises(Understood):
            start(words[0] if module else program, run_name="__main__")
