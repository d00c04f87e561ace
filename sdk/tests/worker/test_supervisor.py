"""The small process between application and worker, and what it shares with the worker."""

import os
import resource
import subprocess
import sys

import pytest
from anyengine.worker import supervisor

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
    monkeypatch.setattr(supervisor, "Path", lambda _: stat)
    assert supervisor.process_state(1) == "T"


@pytest.fixture
def many_files():
    """This process has so many files open that the next one has a number that select(2) does not know."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this process may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    opened = []
    while not opened or opened[-1] < 1024:
        opened.append(os.open(os.devnull, os.O_RDONLY))
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_engine_loads_in_an_application_with_many_open_files(worker, many_files):
    async with worker("hello") as engine:
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]
