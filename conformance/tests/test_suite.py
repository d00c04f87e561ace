"""The suite as pytest runs it."""

import subprocess
import sys


def test_pytest_reports_each_check_by_its_outcome():
    command = [sys.executable, "-m", "pytest", "--pyargs", "anyengine_conformance.suite", "--engine", "reference", "-q",
               "-p", "no:cacheprovider", "--conformance-only", "streaming.terminal-is-last", "--conformance-only",
               "limits.declared-logprobs-hold"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 not-run" in done.stdout
