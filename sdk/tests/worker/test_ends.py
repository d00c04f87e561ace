"""Every way out of a worker has a bound, and leaves nothing."""

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import threading

import pytest
from anyengine import EngineDied, EngineStartupError
from anyengine.worker.heartbeat import ControlThread
from anyengine.worker.process import WorkerProcess, _Lines
from anyengine.worker.protocol import PROTOCOL, Call, FrameReader, Hello, Log, Result, frame


@pytest.fixture
def started(monkeypatch):
    """The worker processes that were started; what is still there is killed at the end."""
    found = []
    start = WorkerProcess._start

    def remember(self, *arguments):
        start(self, *arguments)
        found.append(self)

    monkeypatch.setattr(WorkerProcess, "_start", remember)
    yield found
    for process in found:
        process._kill_group()


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr("anyengine.worker.client._GRACE", 0.2)


async def outcome(task, seconds=30):
    """What became of a task that may wait for ever."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    assert done, "it has no end"
    return None if task.cancelled() else task.exception()


async def load(worker, name, **config):
    async with worker(name, **config):
        pass


async def test_a_load_that_blocks_its_worker_ends_with_the_startup_timeout(worker, started, gone, short_grace):
    error = await outcome(asyncio.create_task(load(worker, "blocks-in-load", startup_timeout=2.0)))
    assert isinstance(error, EngineStartupError)
    assert "startup_timeout" in str(error)
    assert gone([process.pid for process in started] + [process.worker_pid for process in started]) == []


@pytest.fixture
def served(python):
    """``served(engine)``: a worker without a supervisor, whom nobody would kill, and its socket; it has loaded."""
    (ours, requests), (control, theirs) = socket.socketpair(), socket.socketpair()
    ends = [requests.fileno(), theirs.fileno()]
    command = [python, "-P", "-m", "anyengine.worker", "--serve", *map(str, ends), str(os.getpid())]
    process = subprocess.Popen(command, pass_fds=ends)
    ours.settimeout(100)

    def load(engine):
        ours.sendall(frame([Hello(PROTOCOL, ""), Call(1, "load", {"engine": engine, "config": {}})]))
        answers = FrameReader(FrameReader.ANSWERS)
        while not any(isinstance(message, Result) for message in answers.feed(ours.recv(2**16))):
            pass
        return process, ours

    yield load
    process.kill()
    process.wait()
    for end in (ours, requests, control, theirs):
        end.close()


@pytest.mark.parametrize("engine", ["leaves-thread", "leaves-task"])
def test_a_worker_ends_whatever_its_engine_has_left(served, engine):
    process, end = served(engine)
    end.sendall(frame([Call(2, "close")]))
    end.shutdown(socket.SHUT_WR)
    assert process.wait(60) == 0


def test_who_writes_faster_than_is_read_does_not_keep_the_watch():
    end, theirs = os.pipe()
    os.set_blocking(end, False)
    lines = []

    def say(line):
        lines.append(line)
        if len(lines) < 10_000:
            os.write(theirs, b"noise\n")

    os.write(theirs, b"noise\n")
    _Lines(say).read(end)
    assert 0 < len(lines) < 10_000
    os.close(end)
    os.close(theirs)


def test_no_record_of_a_log_ends_the_signs_of_life():
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    thread = ControlThread(theirs)
    for level, name in ((2**70, "engine"), (True, "engine"), (20, "\udcff"), (20, "last")):
        thread.handle(logging.makeLogRecord({"levelno": level, "name": name, "msg": "noise"}))
    frames, heard = FrameReader(FrameReader.CONTROL), []
    while "last" not in [name for _, name in heard]:
        messages = frames.feed(ours.recv(2**16))
        heard += [(message.level, message.logger) for message in messages if isinstance(message, Log)]
    assert heard == [(2**31, "engine"), (1, "engine"), (20, "?"), (20, "last")]
    ours.close()
    theirs.close()


async def test_an_application_with_no_descriptor_left_is_told_so(worker, monkeypatch, descriptors):
    pair, left = socket.socketpair, [1]

    def scarce():
        if not left:
            raise OSError(errno.EMFILE, "Too many open files")
        left.pop()
        return pair()

    before = descriptors()
    monkeypatch.setattr("anyengine.worker.process.socket.socketpair", scarce)
    with pytest.raises(EngineStartupError, match="cannot be started: Too many open files"):
        await load(worker, "hello")
    assert descriptors() == before


async def test_an_engine_that_exits_is_told_with_its_status(worker):
    async with worker("exits-itself") as engine:
        with pytest.raises(EngineDied) as caught:
            await engine.generate("hi", stop="zz")
        assert caught.value.exit_status == 5


async def test_a_load_that_blocks_its_worker_can_be_cancelled(worker, started, gone, short_grace, caplog):
    caplog.set_level(logging.INFO, logger="anyengine.worker")
    task = asyncio.create_task(load(worker, "blocks-in-load"))
    while "loading the weights" not in caplog.text:  # noqa: ASYNC110 another process
        await asyncio.sleep(0.01)
    task.cancel()
    await outcome(task)
    assert task.cancelled()
    assert gone([process.pid for process in started] + [process.worker_pid for process in started]) == []


async def test_a_close_that_is_cancelled_leaves_nothing(worker, processes, gone):
    async with worker("children") as engine:
        pids = processes(engine)
        closing = asyncio.create_task(engine.close())
        for _ in range(3):
            await asyncio.sleep(0)
            closing.cancel()
        await outcome(closing)
        assert closing.cancelled()
        assert gone(pids) == []  # before the close of the context


async def test_a_second_close_goes_on_waiting_for_one_that_was_cancelled(worker, processes, gone):
    async with worker("children") as engine:
        pids = processes(engine)
        closing = asyncio.create_task(engine._runtime.close())
        await asyncio.sleep(0)
        closing.cancel()
        await engine._runtime.close()
        assert closing.cancelled()
        assert gone(pids) == []


@pytest.mark.usefixtures("short_grace")
async def test_a_worker_that_hears_nothing_does_not_hold_a_close(worker, started, gone, monkeypatch):
    async with worker("hello") as engine:
        monkeypatch.setattr(WorkerProcess, "kill", lambda _: None)
        monkeypatch.setattr("anyengine.worker.process._SUPERVISOR_SECONDS", 0.2)
        pids = [started[0].pid, started[0].worker_pid]
        os.kill(pids[1], signal.SIGSTOP)
        assert await outcome(asyncio.create_task(engine.close())) is None
        assert gone(pids) == []


async def test_the_end_of_a_worker_is_told_in_full_however_late_it_is_known(worker, monkeypatch):
    loop, free, read = asyncio.get_running_loop(), threading.Event(), _Lines.read
    free.set()

    def held(self, descriptor):
        free.wait()
        read(self, descriptor)

    monkeypatch.setattr(_Lines, "read", held)  # what the watching thread does before it looks at an end
    async with worker("slow") as engine:
        connection, process = engine._runtime._connection, engine._runtime._process
        generation = asyncio.create_task(engine.generate("hi", max_tokens=4000))
        try:
            free.clear()
            os.kill(process.worker_pid, signal.SIGKILL)
            await connection.closed
            clock = loop.time
            monkeypatch.setattr(loop, "time", lambda: clock() + 2)  # so much later
            for _ in range(5):
                await asyncio.sleep(0)
            assert connection.error is None
        finally:
            free.set()
        with pytest.raises(EngineDied) as caught:
            await generation
        assert caught.value.exit_status == -signal.SIGKILL
