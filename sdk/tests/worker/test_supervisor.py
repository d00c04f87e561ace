"""The small process between application and worker, and what it shares with the worker."""

import os
import subprocess
import sys

import pytest
from anyengine.worker import heartbeat, supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def child():
    """A process below this one, and what is ended with the test."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def vanishing(child, monkeypatch):
    """The child ends in the moment in which its folder of threads is read, after it was found."""

    def between(read):
        def reading(path=".", *arguments):
            if str(path) == f"/proc/{child.pid}/task":
                child.kill()
                child.wait()
            return read(path, *arguments)

        return reading

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, between(getattr(os, name)))
    return child


def test_a_process_that_vanishes_in_the_moment_of_the_search_is_no_error(vanishing):
    found = supervisor.descendants(os.getpid())
    assert vanishing.returncode is not None  # it did vanish then
    assert vanishing.pid in found


def test_the_name_of_a_process_may_be_any_bytes(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_bytes(b"1 (\xff) \xfe) T 2 3")
    monkeypatch.setattr(heartbeat, "Path", lambda _: stat)
    assert heartbeat._state(1) == "T"
