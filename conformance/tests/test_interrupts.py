"""A run that is interrupted reports what ran, certifies nothing, and leaves no process."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from anyengine_conformance.badge import badge
from anyengine_conformance.html import render
from anyengine_conformance.interrupts import Interrupted, Interrupts, accepted, held
from anyengine_conformance.progress import summary
from anyengine_conformance.report import BadReport, read_report, write_report
from anyengine_conformance.shards import merged
from msgspec.structs import replace


async def good(t):
    await t.generate(max_tokens=2)


@pytest.fixture
def interrupted(make_runner, make_check):
    """A report of a run whose second check of three was interrupted, with what that check saw of it."""
    seen: list[str] = []

    async def interrupts(t):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what it holds it can close
            seen.append("cleaned up")

    checks = [make_check(good, id="tests.a"), make_check(interrupts, id="tests.b"), make_check(good, id="tests.c")]
    with Interrupts() as interrupts_:
        report = make_runner().run(checks)
    return report, seen, interrupts_


def test_what_ended_is_reported_and_what_was_under_way_is_named(interrupted):
    report, seen, interrupts = interrupted
    assert [result.id for result in report.results] == ["tests.a"]
    assert report.stopped == "interrupted by SIGTERM after 1 of 3 checks, in tests.b"
    assert (report.good, report.suite.complete, interrupts.exit_code) == (False, False, 143)
    assert seen == ["cleaned up"]


def test_it_is_no_certification_wherever_it_is_shown(interrupted, tmp_path: Path):
    write_report(interrupted[0], tmp_path / "r.json")
    report = read_report(tmp_path / "r.json")
    assert "NOT FINISHED, interrupted by SIGTERM after 1 of 3 checks" in summary(report)
    page = render(report)
    assert "not finished</span>" in page
    assert "The run was not finished: interrupted by SIGTERM" in page
    assert "keeps the contract" not in page
    with pytest.raises(BadReport, match="this one was interrupted by SIGTERM"):
        badge(replace(report, suite=replace(report.suite, complete=True)))


def test_merged_with_others_it_is_still_one(interrupted):
    report = interrupted[0]
    whole = merged([replace(report, stopped="", results=[]), report], 1.0)
    assert (whole.stopped, whole.good, whole.suite.complete) == (report.stopped, False, False)


def test_once_it_is_accepted_nothing_interrupts_any_more():
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):  # it got lost on its way, so the next one counts
            signal.raise_signal(signal.SIGINT)
        assert accepted(caught.value) == "SIGINT"
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.exit_code == 130
    with pytest.raises(KeyboardInterrupt) as plain:
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(plain.value, Interrupted)
    assert accepted(plain.value) == "SIGINT"


def test_what_is_held_is_done_before_a_signal_interrupts():
    done: list[str] = []
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted), held():  # noqa: PT012 what happens inside is the subject
            signal.raise_signal(signal.SIGTERM)
            done.append("the rest")
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    assert (done, interrupts.received) == (["the rest"], signal.SIGTERM)


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert (interrupts.received, signal.getsignal(signal.SIGHUP)) == (None, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_it_changes_nothing():
    handlers: list[object] = []

    def inside() -> None:
        with Interrupts():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


ENDLESS = """
import asyncio, os, time
from pathlib import Path
from anyengine_conformance.broken import BrokenBackend, BrokenPlugin
from anyengine_conformance.simulated import SimulatedPlugin

def asked():
    Path(f"asked-{os.getpid()}").touch()

class Plugin(BrokenPlugin):
    inner = SimulatedPlugin()

    class backend(BrokenBackend):
        async def stream(self, request):
            asked()
            await asyncio.Event().wait()
            yield

def hangs():
    asked()
    time.sleep(3600)

class Slow(BrokenPlugin):
    inner = SimulatedPlugin()

    class backend(BrokenBackend):
        async def close(self):
            asked()
            await asyncio.sleep(2)
            await self.inner.close()

class Blocking(BrokenPlugin):
    inner = SimulatedPlugin()

    class backend(BrokenBackend):
        async def stream(self, request):
            asked()
            time.sleep(3600)
            yield
"""
#: A family that asks for no token, and one that waits for the engine: each has a process where there are two.
CHECKS = (
    "--only=lifecycle.healthy-after-load",
    "--only=lifecycle.info-is-plausible",
    "--only=stopping.length-is-exact",
)


def _of_session(leader: int) -> list[int]:
    """Processes that belong to it still."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdecimal() and int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _wait_for(good: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not good():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def _started(folder: Path, place: str, *words: object) -> Generator[subprocess.Popen[str]]:
    """The command, of which nothing is left afterwards, whatever becomes of the test."""
    (folder / "endless.py").write_text(ENDLESS)
    (folder / "conformance.toml").write_text(f'[subject]\nengine = "mine"\nfactory = "{place}"\noracle = "none"\n')
    command = [sys.executable, "-m", "anyengine", "conformance", "run", "--config", "conformance.toml"]
    with subprocess.Popen(
        [*command, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            for pid in _of_session(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _interrupted(process: subprocess.Popen[str], folder: Path, signum: signal.Signals, processes: int = 1) -> str:
    """Send the signal once the engines of so many processes were asked for something; what the run writes then."""
    _wait_for(lambda: len(list(folder.glob("asked-*"))) == processes)
    process.send_signal(signum)
    return process.communicate(timeout=60)[0]


def test_before_any_check_has_begun_there_is_nothing_to_report(tmp_path: Path):
    with _started(tmp_path, "endless:hangs", "--report", "r.json", *CHECKS) as process:
        out = _interrupted(process, tmp_path, signal.SIGTERM)
    assert (process.returncode, out) == (143, "interrupted before any check had ended\n")
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("place", "signum", "jobs", "code"),
    [
        ("endless:Plugin", signal.SIGINT, 1, 130),
        ("endless:Plugin", signal.SIGTERM, 2, 143),
        ("endless:Blocking", signal.SIGINT, 1, 130),
    ],
    ids=["one process", "two processes", "a blocked event loop"],
)
def test_the_command_writes_its_files_and_leaves_no_process(tmp_path: Path, place, signum, jobs: int, code: int):
    report, page = tmp_path / "r.json", tmp_path / "r.html"
    with _started(tmp_path, place, "--report", report, "--html", page, "--jobs", str(jobs), *CHECKS) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # of a check that has ended
        out = _interrupted(process, tmp_path, signum)  # of two processes one asks for no token
        assert process.returncode == code
        assert f"NOT FINISHED, interrupted by {signum.name} after " in out
        found = read_report(report)
        assert first.split()[1] in {result.id for result in found.results}
        assert "The run was not finished" in page.read_text()
        _wait_for(lambda: not _of_session(process.pid))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_while_the_engine_closes_takes_nothing_away(tmp_path: Path, jobs: int):
    report = tmp_path / "r.json"
    with _started(tmp_path, "endless:Slow", "--report", report, "--jobs", jobs, CHECKS[1], "--only=tokens") as process:
        out = _interrupted(process, tmp_path, signal.SIGTERM, jobs)
    found = read_report(report)
    assert "interrupted before any check" not in out
    if jobs == 1:
        assert (process.returncode, found.stopped) == (0, "")
    assert {result.family for result in found.results} >= {"tokens"}
