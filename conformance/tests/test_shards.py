"""One run in several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from anyengine.cli import main
from anyengine_conformance import shards as shards_module
from anyengine_conformance.check import DEFAULT, OWN, all_checks
from anyengine_conformance.interrupts import Interrupted, Interrupts
from anyengine_conformance.report import read_report
from anyengine_conformance.shards import ShardFailed, merged, run_shards, split
from click.testing import CliRunner
from msgspec.structs import replace


@pytest.mark.parametrize("jobs", [1, 2, 3, 8, 1000])
def test_every_check_is_in_one_shard_and_what_shares_a_load_stays_together(jobs: int):
    shards = split(all_checks(), jobs)
    assert sorted(made.id for shard in shards for made in shard) == sorted(made.id for made in all_checks())
    assert len(shards) <= jobs
    places: dict[str, set[int]] = {}
    for number, shard in enumerate(shards):
        for made in shard:
            if made.variant not in {DEFAULT, OWN}:
                places.setdefault(made.variant, set()).add(number)
    assert all(len(numbers) == 1 for numbers in places.values())


def test_long_checks_are_shared_out_too():
    long = [made for made in all_checks() if made.family == "sampling" and made.variant == DEFAULT]
    assert min(made.deadline for made in long) > 30
    counts = [len(shard) for shard in split(long, 4)]
    assert (len(counts), max(counts) - min(counts)) == (4, 1 if len(long) % 4 else 0)


def test_two_processes_report_as_one_does(tmp_path):
    reports = []
    for name, jobs in (("one", 1), ("two", 2)):
        words = ["conformance", "run", "reference", "--only", "streaming", "--only", "stopping", "--jobs", str(jobs)]
        result = CliRunner().invoke(main, [*words, "--report", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        reports.append(read_report(tmp_path / name))
    one, two = reports
    assert [(r.id, r.outcome, r.command, r.seed) for r in one.results] == [
        (r.id, r.outcome, r.command, r.seed) for r in two.results
    ]
    assert (one.suite, one.subject) == (two.suite, two.subject)


def test_what_every_process_would_refuse_is_refused_once(tmp_path):
    (xfails := tmp_path / "xfails.toml").write_text(
        '[[xfail]]\nid = "stopping.length-is-exact"\nreason = "r"\nlink = "l"\nuntil = 2020-01-01\n'
    )
    words = ["conformance", "run", "reference", "--only", "stopping", "--jobs", "2", "--xfails", str(xfails)]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("stopping.length-is-exact expired on 2020-01-01") == 1


def test_reports_that_do_not_belong_together_are_not_merged(tmp_path):
    file = tmp_path / "r.json"
    CliRunner().invoke(
        main, ["conformance", "run", "reference", "--only", "stopping.length-is-exact", "--report", str(file)]
    )
    report = read_report(file)
    with pytest.raises(ShardFailed, match="in common"):
        merged([report, report], 1.0)
    commits = [replace(report, results=[], environment=replace(report.environment, commit=name)) for name in "aba"]
    assert merged(commits, 1.0).environment.commit == "a, b"
    other = replace(report, suite=replace(report.suite, seed=7), results=[])
    with pytest.raises(ShardFailed, match="different suites"):
        merged([report, other], 1.0)


def test_a_process_that_ends_without_a_report_says_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'passed one'\necho 'out of luck' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    lines: list[str] = []
    with pytest.raises(ShardFailed, match=r"(?s)status 3.*out of luck"):
        run_shards(["anyengine", "conformance", "run", "x"], all_checks()[:1], 2, lines.append)
    assert lines == ["passed one"]


def test_a_child_that_keeps_the_output_of_an_ended_process_open_is_not_waited_for(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path / 'child'}\necho 'out of luck'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(shards_module, "_READING", 1.0)
    began = time.monotonic()
    try:
        with pytest.raises(ShardFailed, match=r"(?s)status 3.*out of luck"):
            run_shards(["anyengine", "conformance", "run", "x"], all_checks()[:1], 2, print)
        assert time.monotonic() - began < 100
    finally:
        with suppress(OSError, ValueError):
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_signal_while_a_process_starts_leaves_none(monkeypatch):
    started: list[subprocess.Popen[str]] = []

    class Started(subprocess.Popen):
        def __init__(self, _command, **options):
            super().__init__(["/bin/sleep", "600"], **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Started)
    try:
        with Interrupts() as interrupts, pytest.raises(Interrupted):
            run_shards(["anyengine", "conformance", "run", "x"], all_checks(), 2, print)
        assert interrupts.received is signal.SIGTERM
        assert [process.returncode for process in started] == [-signal.SIGTERM]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_progress_does_not_mix_with_json():
    words = ["conformance", "run", "reference", "--only", "stopping.length-is-exact", "--jobs", "2", "--json"]
    result = CliRunner().invoke(main, words)
    assert json.loads(result.stdout)["suite"]["complete"] is False
