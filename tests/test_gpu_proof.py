"""The steps of a proof: each is run once, under its limit, and what was cut off is run again."""

import json
import runpy
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROOF = runpy.run_path(str(ROOT / "tools" / "gpu_proof.py"))


def step(tmp_path, code, *, limit=30.0, name="made", alone=False):
    report = tmp_path / f"{name}.json"
    return PROOF["Step"](name, (sys.executable, "-c", code, str(report)), report, limit, alone=alone)


async def run(*steps, ends=None, at_once=2):
    await PROOF["Runner"](list(steps), [3], at_once, ends).run()


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
async def test_a_step_that_ended_is_not_left(tmp_path, code, outcome):
    made = step(tmp_path, code)
    assert (made.outcome(), PROOF["_left"]([made], again=False)) == (None, [made])
    await run(made)
    assert made.outcome() == outcome
    assert PROOF["_left"]([made], again=False) == []
    assert PROOF["_left"]([made], again=True) == [made]


async def test_another_command_is_another_step(tmp_path):
    await run(step(tmp_path, REPORTS))
    assert step(tmp_path, REPORTS + "pass").outcome() is None


async def test_a_step_beyond_its_limit_is_cut_off_with_what_it_started_and_left_for_the_next_time(tmp_path):
    child = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).wait()"
    made = step(tmp_path, REPORTS + child, limit=2.0)
    started = time.monotonic()
    await run(made)
    assert time.monotonic() - started < 60
    assert (made.outcome(), PROOF["_left"]([made], again=False)) == ("cut off", [made])


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


async def test_what_measures_speed_waits_for_the_others(tmp_path):
    seen = tmp_path / "seen.txt"
    note = f"open({str(seen)!r}, 'a').write(pathlib.Path(sys.argv[1]).stem + ' ');"
    await run(
        step(tmp_path, REPORTS + note, name="speed", alone=True),
        step(tmp_path, REPORTS + note, name="first"),
        step(tmp_path, REPORTS + note, name="second"),
    )
    assert sorted(seen.read_text().split()[:2]) == ["first", "second"]
    assert seen.read_text().split()[2:] == ["speed"]


def test_the_table_is_made_of_the_answers_that_are_there(tmp_path):
    plan = PROOF["Plan"]("model", tmp_path, {"vllm": "python"}, 2)
    every = plan.steps()
    answers = [each for each in every if each.name.startswith("answers/")]
    assert len(answers) > 4
    answers[0].write("passed", 1.0, 0)
    answers[1].write("cut off", 1.0, 0)
    command = plan.judging(every).command
    assert [word for word in command if word.endswith(".jsonl")] == [str(answers[0].report)]


def test_every_step_has_a_name_and_a_report_of_its_own_and_names_files_that_are_there(tmp_path):
    every = PROOF["Plan"]("model", tmp_path, {"vllm": "python", "lmdeploy": "python"}, 2).steps()
    assert len({each.name for each in every}) == len({each.report for each in every}) == len(every)
    files = [word for each in every for word in each.command if word.endswith((".py", ".toml"))]
    assert [word for word in files if not (ROOT / word).exists()] == []
