"""A started server ends with its engine, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from asyncio.base_subprocess import BaseSubprocessTransport
from typing import TYPE_CHECKING, Any

import pytest
from anyengine.errors import EngineDied
from anyengine.worker.supervisor import descendants, is_running
from anyengine_server import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

#: Prints its child's process id, and waits; the child has left its group.
PARENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
print("child", child.pid, flush=True)
print("own", os.getpid(), flush=True)
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--polite" in sys.argv:
    def end(*_):
        print("ending", flush=True)
        child.kill()
        sys.exit(3)
    signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


async def start(*options: str, source: str = PARENT) -> ServerProcess:
    return await ServerProcess.start(
        [sys.executable, "-c", source, *options], name="simulated", environment=dict(os.environ)
    )


async def pids(process: ServerProcess) -> list[int]:
    async def ready() -> bool:
        return "ready" in process.log()

    await process.ready(ready)
    return [process.pid, *(int(line.split()[1]) for line in process.log() if line.startswith(("child ", "own ")))]


async def stopped(process: ServerProcess, every: list[int], patience: float = 0) -> None:
    """Stop it within half a minute, with all of ``every``; what is left would outlive the tests, so it is killed."""
    stopping = asyncio.ensure_future(process.stop(patience))  # it swallows a cancellation: wait_for would bound nothing
    left = every
    try:
        done, _ = await asyncio.wait([stopping], timeout=30)
        left = list(filter(is_running, every))
        assert (bool(done), left) == (True, [])
    finally:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.wait([stopping], timeout=30)


async def test_it_is_asked_to_end_first():
    process = await start("--polite")
    every = await pids(process)
    await process.stop()
    await process.stop()
    assert process.exit_status == 3
    assert process.log()[-1] == "ending"
    assert not any(map(is_running, every))


async def test_what_has_no_handler_of_its_own_ends_when_it_is_asked_to():
    process = await start()
    every = await pids(process)
    await process.stop(patience=60)  # it is not waited for
    assert process.exit_status == 128 + signal.SIGTERM
    assert not any(map(is_running, every))


async def test_the_guard_ends_for_no_signal_of_its_own():
    process = await start("--polite")
    every = await pids(process)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(process.pid, signum)
    assert await process.death(patience=0.3) is None
    assert all(map(is_running, every))
    await process.stop()
    assert process.exit_status == 3


async def test_what_does_not_end_is_killed_with_all_that_it_started():
    process = await start("--stubborn")
    every = await pids(process)
    assert len(every) == 3
    assert all(map(is_running, every))
    await process.stop(patience=0.2)
    assert not any(map(is_running, every))


async def test_a_child_is_found_whose_parent_dies_in_the_moment_of_the_search(monkeypatch, tmp_path: Path):
    guard = tmp_path / "guard.py"
    guard.write_text("""
import sys
from anyengine.worker import supervisor
from anyengine_server import guard
search, searches = supervisor.descendants, []
def late(pid):
    searches.append(pid)
    return search(pid)[: 1 if len(searches) == 1 else None]  # the server, whose child was ours a moment too late
supervisor.descendants = late
raise SystemExit(guard.main(sys.argv[1:]))
""")
    monkeypatch.setattr("anyengine_server.child._GUARD", guard)
    process = await start("--stubborn")
    every = await pids(process)
    await stopped(process, every)
    assert process.exit_status == 128 + signal.SIGKILL


@pytest.fixture
def held():
    """Descriptors that somebody else holds open."""
    descriptors: list[int] = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="opens another process's output")
async def test_whoever_holds_its_output_open_is_not_waited_for(held: list[int]):
    process = await start("--stubborn")
    every = await pids(process)
    held.append(os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY))
    await stopped(process, every)
    assert process.exit_status == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="opens another process's output")
async def test_an_end_is_told_while_its_output_is_held_open(held: list[int]):
    process = await start("--polite")
    every = await pids(process)
    held.append(os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY))
    os.kill(every[2], signal.SIGTERM)  # the server
    error = await process.death(patience=30)
    assert error is not None
    assert (error.exit_status, error.log_tail[-1]) == (3, "ending")
    await stopped(process, every)


async def test_a_process_that_we_have_forked_does_not_keep_it_alive(held: list[int]):
    process = await start("--stubborn")
    every = await pids(process)
    lifeline = process._transport.get_pipe_transport(0)
    assert lifeline is not None
    held.append(os.dup(lifeline.get_extra_info("pipe").fileno()))  # as a fork does
    await stopped(process, every)
    assert process.exit_status == 128 + signal.SIGKILL  # by the guard, which was not killed itself


async def test_a_guard_that_does_not_do_its_work_is_ended_with_all_that_is_below_it(monkeypatch):
    monkeypatch.setattr("anyengine_server.child._GUARD_SECONDS", 0.2)
    process = await start("--stubborn")
    every = await pids(process)
    os.kill(process.pid, signal.SIGSTOP)
    await stopped(process, every)
    assert process.exit_status == -signal.SIGKILL


async def test_what_is_killed_instead_of_by_the_guard_is_waited_for(monkeypatch):
    monkeypatch.setattr("anyengine_server.child._GUARD_SECONDS", 0.2)
    process = await start("--stubborn")
    every = await pids(process)
    kill, loop = os.kill, asyncio.get_running_loop()

    def at_once(pid: int, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signum)

    def late(pid: int, signum: int) -> None:
        """For those below the guard, as a kernel with much to do."""
        loop.call_later(1.5 if pid in every[1:] else 0, at_once, pid, signum)  # their output is waited for a second

    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(os, "kill", late)
    await stopped(process, every)
    assert process.exit_status == -signal.SIGKILL


async def test_an_end_is_told_with_its_status_and_last_words():
    process = await start(source="print('what went wrong'); raise SystemExit(7)")

    async def never() -> bool:
        return False

    with pytest.raises(EngineDied, match="last words: what went wrong") as caught:
        await process.ready(never)
    assert (caught.value.exit_status, caught.value.log_tail) == (7, ("what went wrong",))
    await process.stop()


async def test_a_killed_server_leaves_no_child_and_tells_its_signal():
    process = await start()
    every = await pids(process)
    own = next(int(line.split()[1]) for line in process.log() if line.startswith("own"))
    os.kill(own, signal.SIGKILL)
    error = await process.death(patience=10)
    assert error is not None
    assert error.exit_status == -signal.SIGKILL
    assert not any(map(is_running, every))
    await process.stop()


async def test_a_program_that_is_not_there_is_told():
    process = await ServerProcess.start(["/no/such/program"], name="simulated", environment={})
    error = await process.death(patience=10)
    assert error is not None
    assert "cannot be started" in str(error)
    await process.stop()


async def test_a_flood_of_output_is_read_and_bounded():
    source = """
import sys, time
for number in range(20000):
    print("line", number)
print("x" * 500_000)
print("ready", flush=True)
time.sleep(3600)
"""
    process = await start(source=source)
    await pids(process)
    assert len(process.log()) <= 400
    await process.stop(patience=0.1)


def test_it_ends_when_this_process_is_killed(tmp_path: Path):
    program = f"""
import asyncio, os, sys
from anyengine_server import ServerProcess
async def main():
    process = await ServerProcess.start([sys.executable, "-c", {PARENT!r}], name="s", environment=dict(os.environ))
    while "ready" not in process.log():
        await asyncio.sleep(0.01)
    print(process.pid, *(line.split()[1] for line in process.log() if line != "ready"), flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    application = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert application.stdout is not None
    every = [int(word) for word in application.stdout.readline().split()]
    assert len(every) == 3
    assert all(map(is_running, every))
    application.kill()
    application.wait()
    application.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(is_running, every)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, every))


async def test_stopping_may_be_cancelled_and_still_stops():
    process = await start("--polite")
    every = await pids(process)
    stopping = asyncio.ensure_future(process.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    results: Any = await asyncio.gather(stopping, return_exceptions=True)
    assert len(results) == 1
    assert not any(map(is_running, every))


async def test_starting_may_be_cancelled_and_leaves_nothing(monkeypatch):
    reached, go, pids = asyncio.Event(), asyncio.Event(), []
    connect = BaseSubprocessTransport._connect_pipes

    async def late(self: Any, waiter: Any) -> None:
        pids.append(self.get_pid())
        reached.set()
        await go.wait()
        await connect(self, waiter)

    monkeypatch.setattr(BaseSubprocessTransport, "_connect_pipes", late)
    starting = asyncio.ensure_future(start("--stubborn"))
    await reached.wait()
    while not (below := descendants(pids[0])):  # noqa: ASYNC110 another process
        await asyncio.sleep(0.01)
    for _ in range(3):
        starting.cancel()
        await asyncio.sleep(0)
    go.set()
    done, _ = await asyncio.wait([starting], timeout=20)
    every = [*pids, *below]
    left = list(filter(is_running, every))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (bool(done), left) == (True, [])
    assert starting.cancelled()
