"""The engine as its users have it: streams, cancellation, closing, failures, statistics, log-probabilities."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from anyengine import Engine, SamplingParams, Structured
from anyengine.errors import EngineClosed, EngineDied, InvalidRequest
from anyengine_reference.model import Model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GREEDY = SamplingParams(temperature=0)
PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture
async def engine(bytes_folder: Path) -> AsyncIterator[Engine]:
    async with Engine.load("reference", model=str(bytes_folder)) as loaded:
        yield loaded


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "anyengine-reference"]


async def used(engine: Engine) -> tuple[int | None, int | None, int | None]:
    stats = await engine.stats()
    return stats.kv_cache.used_tokens, stats.running, stats.waiting


async def test_a_thousand_streams_left_at_random_points_leave_nothing_behind(engine: Engine) -> None:
    chance = random.Random(5)  # noqa: S311 no secret
    before = asyncio.all_tasks()

    async def leave(number: int) -> None:
        points = chance.choice([0, 0, 0, 1, 2, 3, 5])
        request = {"prompt": [1 + number % 7, *PROMPT], "max_tokens": 12, "ignore_eos": True}
        if number % 3 == 0:  # cancelled from outside, somewhere
            task = asyncio.create_task(engine.generate(**request))
            for _ in range(points * 20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        async with engine.stream(**request) as stream:
            chunks = aiter(stream)
            for _ in range(points):
                await anext(chunks, None)

    for start in range(0, 1000, 250):
        await asyncio.gather(*(leave(number) for number in range(start, start + 250)))
    assert await used(engine) == (0, 0, 0)
    assert asyncio.all_tasks() == before
    requests = (await engine.stats()).requests
    assert requests is not None
    assert requests["error"] == 0
    assert requests["abort"] > 0


async def test_close_ends_open_streams_with_abort_and_may_be_called_again(bytes_folder: Path) -> None:
    engine = await Engine.load("reference", model=str(bytes_folder), scheduling={"max_num_seqs": 2})
    reasons: list[str] = []
    begun = asyncio.Semaphore(0)

    async def read(**options: Any) -> None:
        async with engine.stream(PROMPT, max_tokens=200, ignore_eos=True, **options) as stream:
            async for chunk in stream:
                begun.release()
                if chunk.finish is not None:
                    reasons.append(chunk.finish.reason)

    tasks = [asyncio.create_task(read()) for _ in range(4)]
    for _ in range(2):
        await begun.acquire()
    await asyncio.gather(engine.close(), engine.close())
    await engine.close()
    await asyncio.gather(*tasks)
    assert reasons == ["abort"] * 4
    with pytest.raises(EngineClosed):
        await engine.generate(PROMPT)
    assert engine_threads() == []


async def test_close_while_many_arrive_ends_each_by_abort_or_refusal(bytes_folder: Path) -> None:
    engine = await Engine.load("reference", model=str(bytes_folder), scheduling={"max_num_seqs": 4})
    tasks = [asyncio.create_task(engine.generate(PROMPT, max_tokens=50, ignore_eos=True)) for _ in range(100)]
    await tasks[0] if tasks[0].done() else await asyncio.sleep(0)
    await engine.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {
        "closed" if isinstance(result, EngineClosed) else result.finish_reason  # type: ignore[union-attr]
        for result in results
    } <= {"closed", "abort"}


async def test_close_while_a_structure_is_compiled_ends_its_stream_with_abort(bytes_folder: Path) -> None:
    engine = await Engine.load("reference", model=str(bytes_folder))
    many = Structured(choice=[f"choice {number}" for number in range(5_000)])
    task = asyncio.create_task(engine.generate(PROMPT, structured=many, max_tokens=50))
    for _ in range(5):
        await asyncio.sleep(0)
    await engine.close()
    assert (await task).finish_reason == "abort"


async def test_abort_while_a_structure_is_compiled_computes_nothing(bytes_folder: Path) -> None:
    from anyengine.backend import TokenRequest

    async with Engine.load("reference", model=str(bytes_folder)) as engine:
        backend = engine._runtime._hooks.stats.get_hookimpls()[-1].plugin
        wanted = TokenRequest(
            id="x",
            prompt_token_ids=PROMPT,
            sampling=GREEDY,
            max_tokens=5,
            logprobs=0,
            structured=Structured(choice=["a", "b"]),
        )
        stream = backend.stream(wanted)
        await backend.abort("x")
        (delta,) = [delta async for delta in stream]
        assert (delta.token_ids, delta.logprobs, delta.finish.reason) == ([], [], "abort")
        assert (await engine.stats()).generated_tokens == 0


async def test_a_loop_that_is_cancelled_while_loading_leaves_no_thread(bytes_folder: Path) -> None:
    async def load() -> Engine:
        return await Engine.load("reference", model=str(bytes_folder))

    task = asyncio.create_task(load())
    while not task.done() and not engine_threads():
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine_threads() == []


async def test_a_failing_model_fails_all_open_requests_and_nothing_hangs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    forward = Model.forward

    def failing(self: Model, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise FloatingPointError("broken")
        return forward(self, *arguments)

    monkeypatch.setattr(Model, "forward", failing)
    work = [engine.generate(PROMPT, max_tokens=50, ignore_eos=True) for _ in range(5)]
    results = await asyncio.gather(*work, engine.score(PROMPT), return_exceptions=True)
    died = [result for result in results if isinstance(result, EngineDied)]
    assert len(died) >= 5
    assert len({id(error) for error in died}) == len(died)
    assert all(isinstance(error.__cause__, FloatingPointError) for error in died)
    for _ in range(2):
        with pytest.raises(EngineDied, match="FloatingPointError: broken"):
            await engine.health()
    with pytest.raises(EngineDied):
        await engine.generate(PROMPT)
    with pytest.raises(EngineDied):
        await engine.score(PROMPT)
    assert await used(engine) == (0, 0, 0)
    await engine.close()
    assert engine_threads() == []


async def test_one_request_without_a_token_left_harms_no_other(engine: Engine) -> None:
    good, bad = await asyncio.gather(
        engine.generate(PROMPT, max_tokens=20, ignore_eos=True),
        engine.generate(PROMPT, max_tokens=20, sampling=SamplingParams(allowed_token_ids=[256]), min_tokens=3),
        return_exceptions=True,
    )
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "sampling"
    assert good.finish_reason == "length"  # type: ignore[union-attr]
    requests = (await engine.stats()).requests
    assert requests == {"stop": 0, "length": 1, "abort": 0, "error": 1}
    assert await used(engine) == (0, 0, 0)


async def test_logprobs_of_the_whole_vocabulary_sum_to_one_and_stand_in_order(engine: Engine) -> None:
    answer = await engine.generate(PROMPT, max_tokens=4, ignore_eos=True, logprobs=259, prompt_logprobs=259)
    assert answer.logprobs is not None
    assert answer.prompt_logprobs is not None
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    assert answer.prompt_logprobs[0] is None
    entries = [*answer.logprobs, *(entry for entry in answer.prompt_logprobs if entry is not None)]
    assert [entry.token_id for entry in entries[4:]] == PROMPT[1:]
    for entry in entries:
        assert math.fsum(map(math.exp, entry.top.values())) == pytest.approx(1, abs=1e-12)
        assert list(entry.top.values()) == sorted(entry.top.values(), reverse=True)
        assert entry.top[entry.token_id] == entry.logprob


async def test_logprobs_are_of_the_raw_distribution(engine: Engine) -> None:
    plain = await engine.generate(PROMPT, max_tokens=1, sampling=GREEDY, logprobs=5, ignore_eos=True)
    bent = SamplingParams(
        temperature=0.3, top_k=2, repetition_penalty=1.5, logit_bias={7: 50.0}, allowed_token_ids=[7, 8]
    )
    shaped = await engine.generate(PROMPT, max_tokens=1, sampling=bent, logprobs=5, ignore_eos=True)
    assert plain.logprobs is not None
    assert shaped.logprobs is not None
    assert shaped.token_ids == [7]
    assert {k: v for k, v in shaped.logprobs[0].top.items() if k != 7} == {
        k: v for k, v in plain.logprobs[0].top.items() if k != 7
    }


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"scheduling": {"chunked_prefill": False, "max_num_batched_tokens": 3}},
        {"scheduling": {"max_num_batched_tokens": 1}},
        {"kv_cache": {"block_size": 1}},
        {"kv_cache": {"block_size": 3, "prefix_caching": False}},
        {"speculative": {"method": "ngram", "ngram_min": 1}},
    ],
    ids=str,
)
async def test_score_is_prompt_logprobs_is_sequential_logprobs_bitwise(bytes_folder: Path, config: Any) -> None:
    async with Engine.load("reference", model=str(bytes_folder), **config) as engine:
        answer = await engine.generate(PROMPT, max_tokens=12, sampling=GREEDY, logprobs=3, ignore_eos=True)
        whole = PROMPT + answer.token_ids
        score = await engine.score(whole, logprobs=3)
        echo = await engine.generate(whole, max_tokens=1, prompt_logprobs=3)
        assert score.entries == echo.prompt_logprobs
        assert score.entries[len(PROMPT) :] == answer.logprobs


async def test_statistics_add_up_with_what_was_asked(bytes_folder: Path) -> None:
    config: Any = {"kv_cache": {"capacity_tokens": 64, "block_size": 4}, "max_model_len": 64}
    async with Engine.load("reference", model=str(bytes_folder), **config) as engine:
        answers = await engine.generate(
            [[number, *PROMPT] for number in range(12)], max_tokens=30, ignore_eos=True, sampling=GREEDY
        )
        await engine.score(PROMPT)
        stats = await engine.stats()
        assert (stats.prompt_tokens, stats.generated_tokens) == (12 * 6, 12 * 30)
        assert stats.requests == {"stop": 0, "length": 12, "abort": 0, "error": 0}
        assert stats.preemptions is not None
        assert stats.preemptions > 0
        histograms = stats.time_to_first_token, stats.inter_token_latency, stats.queue_time
        assert [histogram.count for histogram in histograms if histogram] == [12, 12 * 29, 12]
        assert stats.kv_cache.capacity_tokens == 64
        assert stats.kv_cache.prefix_queries == 12 * 6
        assert [answer.usage.completion_tokens for answer in answers] == [30] * 12


async def test_stop_tokens_end_it_and_ignore_eos_leaves_them_in_force(engine: Engine) -> None:
    plain = await engine.generate(PROMPT, max_tokens=30, sampling=GREEDY, ignore_eos=True)
    stop = plain.token_ids[9]
    first = plain.token_ids.index(stop)
    stopped = await engine.generate(PROMPT, max_tokens=30, sampling=GREEDY, ignore_eos=True, stop_token_ids=[stop])
    assert (stopped.token_ids, stopped.stop_reason) == (plain.token_ids[: first + 1], stop)
    later = await engine.generate(
        PROMPT, max_tokens=30, sampling=GREEDY, ignore_eos=True, stop_token_ids=[stop], min_tokens=first + 1
    )
    assert stop not in later.token_ids[: first + 1]
    eos = SamplingParams(allowed_token_ids=[256])
    ended = await engine.generate(PROMPT, max_tokens=5, sampling=eos)
    ignored = await engine.generate(PROMPT, max_tokens=5, sampling=eos, ignore_eos=True)
    assert (ended.token_ids, ended.finish_reason, ended.stop_reason) == ([256], "stop", 256)
    assert (ignored.token_ids, ignored.finish_reason) == ([256] * 5, "length")


async def test_seeds_reproduce_and_differ(engine: Engine) -> None:
    async def tokens(seed: int) -> list[int]:
        answer = await engine.generate(PROMPT, max_tokens=8, sampling=SamplingParams(seed=seed), ignore_eos=True)
        return answer.token_ids

    assert await tokens(3) == await tokens(3)
    assert await tokens(3) != await tokens(4)


SCRIPT = """
import asyncio, sys
from anyengine import Engine

async def begin():
    engine = await Engine.load("reference")
    async def read():
        async with engine.stream("Once upon a time", max_tokens=900, ignore_eos=True) as stream:
            async for chunk in stream:
                print("x", flush=True)
    if MODE == "signal":
        async with engine:
            await read()
    task = asyncio.ensure_future(read())
    for _ in range(200):
        await asyncio.sleep(0)
    return engine, task

MODE = sys.argv[1]
if MODE == "signal":
    asyncio.run(begin())
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(begin())
if MODE == "closed":
    loop._ready.clear()
    kept[1]._log_destroy_pending = False
    loop.close()
print("end", flush=True)
"""


@pytest.mark.parametrize("mode", ["open", "closed"])
def test_a_program_that_never_closes_its_engine_ends(mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, mode], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("end\n")
    assert "anyengine-reference" not in done.stderr


def test_an_interrupt_in_the_middle_of_a_stream_ends_the_program_at_once() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "signal"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "x\n"
    os.kill(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=30)
    assert errors.rstrip().splitlines()[-1] == "KeyboardInterrupt"
    assert "Exception in thread" not in errors
    assert "EngineDied" not in errors
    assert program.returncode == -signal.SIGINT


async def test_an_engine_that_is_dropped_without_close_ends_its_thread(bytes_folder: Path, settle: Any) -> None:
    import gc

    engine = await Engine.load("reference", model=str(bytes_folder))
    await engine.generate(PROMPT, max_tokens=1)
    (thread,) = engine_threads()
    del engine
    gc.collect()
    await settle(lambda: not thread.is_alive())
