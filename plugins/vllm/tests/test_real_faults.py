"""vLLM in a worker: whatever of it dies or hangs, the application gets a typed error in time, and nothing is left."""

import asyncio
import os
import signal
import sys
import time

import pytest
from anyengine import Engine, EngineDied, EngineUnresponsive
from anyengine.worker.supervisor import descendants

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def in_a_worker(place):
    if "environment" not in place:
        pytest.skip("in this process there is no worker to die")


# Seen at once, an end comes before the heartbeat misses one, which takes 6 s. To 1 s, on a machine with nothing else to
# do, the conformance suite holds engines.
@pytest.mark.parametrize(
    ("victim", "signum", "kind", "seconds"),
    [
        ("--serve", signal.SIGKILL, EngineDied, 5),
        ("EngineCore", signal.SIGKILL, EngineDied, 5),
        ("--serve", signal.SIGSTOP, EngineUnresponsive, 10),
        ("EngineCore", signal.SIGSTOP, EngineUnresponsive, 10),
    ],
    ids=["worker killed", "core killed", "worker stopped", "core stopped"],
)
async def test_a_fault_ends_every_request_in_time_and_leaves_nothing(
    small, storyteller, still_running, all_running, drained, named, victim, signum, kind, seconds
):
    async with Engine.load("vllm", storyteller, **small) as engine:
        pids = [engine.pid, *descendants(engine.pid)]
        requests = [asyncio.create_task(drained(engine, max_tokens=900)) for _ in range(4)]
        await all_running(engine, requests)
        os.kill(named(pids, victim), signum)
        began = time.monotonic()
        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert time.monotonic() - began < seconds
        assert [type(end) for end in ends] == [kind] * len(requests)
        for call in (engine.stats(), engine.health()):
            with pytest.raises(kind):
                await call
    assert still_running(pids) == []


async def test_after_all_that_the_next_load_works_and_nothing_of_vllm_is_imported_here(small, storyteller):
    async with Engine.load("vllm", storyteller, **small) as engine:
        answer = await engine.generate("Once upon a time", max_tokens=4)
    assert len(answer.token_ids) == 4
    # Other tests of this run may compare with torch; vLLM is nowhere but in its environment.
    assert "vllm" not in sys.modules
