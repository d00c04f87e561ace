"""Whatever dies or hangs: a typed error in time, everywhere, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from anyengine import EngineDied, EngineStartupError, EngineUnresponsive
from anyengine.place import Worker


async def opened(engine, count=4):
    """Streams that have given their first chunk, and a generation that runs."""
    streams = [engine.stream("hi", max_tokens=4000) for _ in range(count)]
    for stream in streams:
        await stream.__aenter__()
        await anext(aiter(stream))
    return streams, asyncio.create_task(engine.generate("hi", max_tokens=4000))


async def drained(stream):
    try:
        async for _ in stream:
            pass
    finally:
        await stream.__aexit__(None, None, None)


async def outcomes(streams, generation):
    """What each ended with, and after how many seconds the last one did."""
    began = time.monotonic()
    ends = await asyncio.gather(*map(drained, streams), generation, return_exceptions=True)
    return ends, time.monotonic() - began


async def assert_over(engine, kind):
    for call in (engine.stats(), engine.health(), engine.generate("hi"), engine.score("hello")):
        with pytest.raises(kind):
            await call


@pytest.mark.parametrize("victim", ["supervisor", "worker"])
async def test_a_killed_worker_ends_every_request_at_once(worker, processes, gone, monkeypatch, victim):
    # Its end is what tells of it, and not that its heartbeat is missing.
    monkeypatch.setattr("anyengine.worker.process._HEARTBEAT_TIMEOUT", 60.0)
    async with worker("children") as engine:
        pids = processes(engine)
        target = pids[0] if victim == "supervisor" else (await engine.stats()).native["pid"]
        streams, generation = await opened(engine)
        os.kill(target, signal.SIGKILL)
        ends, seconds = await outcomes(streams, generation)
        assert [type(end) for end in ends] == [EngineDied] * 5
        assert seconds < 30
        assert {end.exit_status for end in ends} == {-signal.SIGKILL}
        assert {end.engine for end in ends} == {"children"}
        await assert_over(engine, EngineDied)
    # A process that left the group of a killed supervisor has nobody who would find it.
    left = gone(pids, most=int(victim == "supervisor"))
    assert len(left) <= int(victim == "supervisor")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    async with worker("children") as engine:
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]


@pytest.mark.parametrize(("name", "status"), [("exits", 7), ("crashes", -signal.SIGSEGV)])
async def test_a_crash_tells_its_status_and_the_last_words(worker, name, status):
    async with worker(name) as engine:
        with pytest.raises(EngineDied, match="the last words of the engine") as caught:
            await engine.generate("hi")
        assert caught.value.exit_status == status
        assert "the last words of the engine" in caught.value.log_tail


async def test_a_stopped_worker_is_found_by_its_missing_heartbeat(worker, processes, gone):
    async with worker("children") as engine:
        pids = processes(engine)
        streams, generation = await opened(engine)
        os.kill((await engine.stats()).native["pid"], signal.SIGSTOP)
        ends, seconds = await outcomes(streams, generation)
        assert [type(end) for end in ends] == [EngineUnresponsive] * 5
        assert "no sign of life for 6 s (a step that holds Python's GIL silences it: " in str(ends[0])
        assert seconds < 30
        await assert_over(engine, EngineUnresponsive)
    assert gone(pids) == []


async def test_a_worker_may_be_silent_while_it_loads(worker):
    async with worker("deaf-in-load") as engine:
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]


@pytest.mark.parametrize("child", [0, 1])
async def test_a_stopped_process_of_the_engine_is_found_while_the_worker_lives(worker, processes, gone, child):
    async with worker("children") as engine:
        pids = processes(engine)
        streams, generation = await opened(engine)
        stopped = (await engine.stats()).native["children"][child]
        os.kill(stopped, signal.SIGSTOP)
        ends, seconds = await outcomes(streams, generation)
        assert [type(end) for end in ends] == [EngineUnresponsive] * 5
        assert f"has stopped its process {stopped}" in str(ends[0])
        assert seconds < 30
    assert gone(pids) == []


@pytest.mark.parametrize("name", ["hangs", "blocks"])
async def test_an_engine_that_does_not_answer_is_found(worker, processes, gone, name):
    async with worker(name, health_timeout=2.0) as engine:
        pids = processes(engine)
        began = time.monotonic()
        with pytest.raises(EngineUnresponsive, match="health_timeout"):
            await engine.generate("hi", max_tokens=4000)
        assert time.monotonic() - began < 30
    assert gone(pids) == []


async def test_an_engine_that_says_that_it_is_dead_ends_every_request(worker, processes, gone):
    async with worker("core-dies") as engine:
        pids = processes(engine)
        with pytest.raises(EngineDied, match="the core of the simulated engine is gone") as caught:
            await engine.generate("hi", max_tokens=4000)
        assert caught.value.engine == "core-dies"
        await assert_over(engine, EngineDied)
    assert gone(pids) == []


async def test_an_engine_that_does_not_close_is_ended(worker, processes, gone, monkeypatch):
    monkeypatch.setattr("anyengine.worker.client._GRACE", 1.0)
    async with worker("unclosed") as engine:
        pids = processes(engine)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert gone(pids) == []


async def test_a_load_that_takes_too_long_is_ended_with_its_last_words(worker, descriptors):
    before = descriptors()
    with pytest.raises(EngineStartupError, match=r"startup_timeout.*loading the weights") as caught:
        # Room for starting an interpreter on a busy machine: the load itself never ends.
        async with worker("never", startup_timeout=20.0):
            pass
    assert caught.value.engine == "never"
    assert descriptors() == before


async def test_a_load_that_is_cancelled_leaves_nothing(worker, descriptors):
    before = descriptors()

    async def load():
        async with worker("never"):
            pass

    task = asyncio.create_task(load())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert descriptors() == before


async def test_a_death_while_loading_is_the_reason_of_the_failure(worker):
    with pytest.raises(EngineDied, match="no kernel image is available") as caught:
        async with worker("dies-in-load"):
            pass
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true", "/bin/cat", "/etc/passwd"])
async def test_a_wrong_interpreter_is_a_startup_error(monkeypatch, python, descriptors):
    from pathlib import Path

    from anyengine import Engine

    monkeypatch.setattr("anyengine.loading.choose_place", lambda engine, _config: Worker(engine, Path(python)))
    before = descriptors()
    with pytest.raises((EngineStartupError, EngineDied)) as caught:
        await Engine.load("hello")
    assert caught.value.engine == "hello"
    assert descriptors() == before


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
import anyengine.loading
from anyengine import Engine
from anyengine.place import Worker
from anyengine.worker.supervisor import descendants
anyengine.loading.choose_place = lambda engine, _config: Worker(engine, Path(sys.argv[1]))
async def main():
    engine = await Engine.load("children")
    stream = engine.stream("hi", max_tokens=4000)
    await stream.__aenter__()
    await anext(aiter(stream))
    print(*descendants(os.getpid()), flush=True)
    {end}
asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["await asyncio.sleep(1000)", "return", "os._exit(1)", "raise SystemExit(1)"])
def test_when_the_application_ends_nothing_is_left(python, gone, end):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(end=end), str(python)], stdout=subprocess.PIPE
    ) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) >= 4
        if "sleep" in end:
            program.kill()
    assert gone(pids) == []
