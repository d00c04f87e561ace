"""The suite as pytest runs it, and the tests of its tests."""

import subprocess
import sys

import pytest
from anyengine_conformance.broken import all_faults
from anyengine_conformance.check import all_checks
from anyengine_conformance.selftest import hold


def test_pytest_reports_each_check_by_its_outcome():
    command = [sys.executable, "-m", "pytest", "--pyargs", "anyengine_conformance.suite", "--engine", "reference", "-q",
               "-p", "no:cacheprovider", "--conformance-only", "streaming.terminal-is-last", "--conformance-only",
               "limits.declared-logprobs-hold"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 not-run" in done.stdout


@pytest.mark.parametrize(
    "fault",
    [fault for fault in all_faults() if fault.base == "simulated"],
    ids=lambda fault: f"{fault.check}-{fault.name}",
)
def test_every_fault_is_caught_by_its_check(fault):
    found = hold(fault, cross=False)
    assert found.caught, found.outcome


def test_a_healthy_engine_passes_everything(make_runner):
    runner = make_runner(grace=5.0)
    runner.open()
    report = runner.run(all_checks())
    assert [f"{result.id}: {result.reason}" for result in report.results if not result.good] == []
