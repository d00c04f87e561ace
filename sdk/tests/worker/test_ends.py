"""Every way out of a worker has a bound, and leaves nothing."""

import asyncio
import logging

import pytest
from anyengine import EngineStartupError
from anyengine.worker.process import WorkerProcess


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


async def test_a_load_that_blocks_its_worker_can_be_cancelled(worker, started, gone, short_grace, caplog):
    caplog.set_level(logging.INFO, logger="anyengine.worker")
    task = asyncio.create_task(load(worker, "blocks-in-load"))
    while "loading the weights" not in caplog.text:  # noqa: ASYNC110 another process
        await asyncio.sleep(0.01)
    task.cancel()
    await outcome(task)
    assert task.cancelled()
    assert gone([process.pid for process in started] + [process.worker_pid for process in started]) == []
