"""Both backends on the *simulated* LMDeploy: what the conformance suite does not look at."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest
from anyengine import Engine, EngineConfig, SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.errors import (
    EngineClosed,
    EngineDied,
    EngineStartupError,
    Failure,
    Misuse,
    OutOfMemory,
    UnsupportedCapability,
)
from anyengine.hub import ModelFiles
from anyengine_lmdeploy import backend as backend_module
from anyengine_lmdeploy import plugin, startup

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["turbomind", "pytorch"])
def backend(request):
    return request.param


@pytest.fixture
def load(simulated, storyteller, backend):
    """``load(config fields)``: an engine, to be entered."""

    def make(native=None, **fields):
        native = {"backend": backend} | (native or {})
        return Engine.load(plugin, str(storyteller), isolation="none", native=native, **fields)

    return make


@pytest.fixture
async def expected(storyteller):
    """What the reference engine answers."""
    async with Engine.load("reference", str(storyteller)) as engine:
        return await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, logprobs=3, prompt_logprobs=3)


@pytest.fixture
def files(storyteller):
    return ModelFiles(
        name="m",
        path=storyteller,
        tokenizer_path=storyteller,
        config=json.loads((storyteller / "config.json").read_bytes()),
        eos_token_ids=frozenset({0, 2}),
    )


@pytest.fixture
async def bare(simulated, backend, files):
    """The backend itself, without the SDK around it; closed afterwards."""
    made = await plugin.load(EngineConfig(native={"backend": backend}, scheduling={"max_num_seqs": 2}), files)
    yield made
    await made.close()


def _request(name="r", **fields):
    return TokenRequest(**{"id": name, "prompt_token_ids": [5, 6], "sampling": GREEDY, "max_tokens": 9, **fields})


def _endless(name="r"):
    return _request(name, max_tokens=900)


def _pool(backend):
    return backend._engine.session_mgr.request_handle_pool


async def _all(stream):
    return [delta async for delta in stream]


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_tokens_and_log_probabilities_are_the_reference_engines(load, expected):
    async with load() as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, logprobs=3, prompt_logprobs=3)
    assert answer.token_ids == expected.token_ids
    for found, wanted in (*zip(answer.logprobs, expected.logprobs, strict=True),
                          *zip(answer.prompt_logprobs[1:], expected.prompt_logprobs[1:], strict=True)):  # fmt: skip
        assert found.token_id == wanted.token_id
        assert found.top == pytest.approx(wanted.top, abs=1e-4)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
async def test_a_stream_gives_every_token_once_and_one_end(bare, logprobs):
    # Two requests: one of them has an end of its own, with no token in it.
    seen = []
    for name in "ab":
        deltas = await _all(bare.stream(_request(name, logprobs=logprobs)))
        assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        assert deltas[-1].finish.reason == "length"
        seen.append([token for delta in deltas for token in delta.token_ids])
        entries = [entry.token_id for delta in deltas for entry in delta.logprobs or ()]
        assert entries == ([] if logprobs is None else seen[-1])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 9


async def test_a_stop_token_is_counted_and_says_stop(load, expected):
    stop = expected.token_ids[5]
    async with load() as engine:
        for _ in range(2):
            answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, stop_token_ids=[stop])
            assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
            first = expected.token_ids.index(stop)
            assert answer.token_ids == expected.token_ids[: first + 1]


async def test_ends_of_the_model_can_be_ignored_and_stop_tokens_not(load, expected):
    stop = expected.token_ids[5]
    async with load() as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, stop_token_ids=[stop], ignore_eos=True)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == stop


async def test_a_score_is_the_reference_engines(load, storyteller):
    async with Engine.load("reference", str(storyteller)) as engine:
        wanted = await engine.score(PROMPT, logprobs=2)
    async with load() as engine:
        found = await engine.score(PROMPT, logprobs=2)
    assert found.token_ids == wanted.token_ids
    for ours, theirs in zip(found.entries[1:], wanted.entries[1:], strict=True):
        assert ours.top == pytest.approx(theirs.top, abs=1e-4)


async def test_a_constraint_holds(load):
    async with load() as engine:
        answer = await engine.generate(PROMPT, max_tokens=40, structured=Structured(choice=["red", "blue"]))
    assert answer.text in {"red", "blue"}


async def test_a_constraint_that_turbomind_dropped_is_no_answer(simulated, storyteller, monkeypatch, caplog):
    from lmdeploy.simulation.grammar import Compiler

    def fail(self, response_format):
        raise ValueError("it cannot be compiled")

    monkeypatch.setattr(Compiler, "compile", fail)
    async with Engine.load(plugin, str(storyteller), isolation="none", native={"backend": "turbomind"}) as engine:
        with caplog.at_level(logging.ERROR), pytest.raises(Failure, match="dropped"):
            await engine.generate(PROMPT, max_tokens=4, structured=Structured(regex="[0-9]+"))
        # Its handle is free again.
        assert len((await engine.generate(PROMPT, max_tokens=2, ignore_eos=True)).token_ids) == 2


# -- ends from outside ------------------------------------------------------------------------------------------------


async def test_an_abort_is_final_and_frees_handle_and_cache(bare):
    stream = bare.stream(_endless())
    assert (await anext(stream)).finish is None
    await bare.abort("r")
    assert _pool(bare).num_dispatched == 0
    assert (await bare.stats()).running == 0
    assert bare._engine.engine.executor.core.scheduler.pool.used == 0
    assert (await _all(stream))[-1].finish.reason == "abort"


async def test_an_abort_before_the_first_step_is_an_abort(bare):
    stream = bare.stream(_endless())
    await bare.abort("r")
    deltas = await asyncio.wait_for(_all(stream), 20)
    assert (deltas[-1].finish.reason, deltas[-1].token_ids) == ("abort", [])
    assert _pool(bare).num_dispatched == 0


@pytest.mark.parametrize("turns", range(1, 12))
async def test_an_abort_at_any_turn_of_the_loop_is_an_abort(bare, turns):
    stream = bare.stream(_endless())
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(bare.abort("r"), 20)
    deltas = await asyncio.wait_for(_all(stream), 20)
    assert deltas[-1].finish.reason == "abort"
    assert _pool(bare).num_dispatched == 0


async def test_an_abort_of_a_request_that_waits_for_a_handle_is_one(bare):
    running = [bare.stream(_endless(f"r{number}")) for number in range(2)]
    for stream in running:
        await anext(stream)
    waiting = bare.stream(_endless("w"))
    stats = await bare.stats()
    assert (stats.running, stats.waiting) == (2, 1)
    await asyncio.wait_for(bare.abort("w"), 20)
    (only,) = await _all(waiting)
    assert (only.finish.reason, only.token_ids) == ("abort", [])
    # And it took no handle with it.
    await bare.abort("r0")
    late = bare.stream(_request("l"))
    assert len([token for delta in await asyncio.wait_for(_all(late), 20) for token in delta.token_ids]) == 9
    await bare.abort("r1")
    for stream in running:
        await _all(stream)
    assert _pool(bare).num_dispatched == 0


async def test_an_abort_of_what_has_ended_is_nothing(bare):
    await _all(bare.stream(_request()))
    await bare.abort("r")
    await bare.abort("never was")


async def test_a_reader_that_is_cancelled_leaves_nothing(load):
    async with load() as engine:

        async def read():
            async with engine.stream(PROMPT, ignore_eos=True, max_tokens=900) as stream:
                async for _ in stream:
                    begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.kv_cache.usage) == (0, 0, 0)


async def _cancelled_score(bare):
    """Of a task that was cancelled while the engine computed it."""
    core, going = bare._engine.engine.executor.core, threading.Event()
    step = core.step
    core.step = lambda: (going.wait(20), step())[1]
    task = asyncio.create_task(bare.score([5, 6, 7], 1))
    while not core.busy:  # noqa: ASYNC110 the simulation has no event to wait for
        await asyncio.sleep(0)
    task.cancel()
    going.set()
    return task


async def test_a_score_that_is_cancelled_leaves_nothing(bare):
    task = await _cancelled_score(bare)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert _pool(bare).num_dispatched == 0
    assert (await bare.score([5, 6, 7], 1)).token_ids == [5, 6, 7]


async def test_a_score_that_is_cancelled_again_is_ended_first(bare, survives_cancellation):
    task = await _cancelled_score(bare)
    assert await survives_cancellation(bare._requests, "abort", task)
    assert _pool(bare).num_dispatched == 0


async def test_a_thousand_requests_that_are_aborted_anywhere_leave_nothing(bare):
    async def one(number):
        stream = bare.stream(_endless(str(number)))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        if number % 3 == 0:
            await anext(stream)
        await bare.abort(str(number))
        return (await _all(stream))[-1].finish.reason

    for first in range(0, 200, 20):
        reasons = await asyncio.wait_for(asyncio.gather(*(one(first + number) for number in range(20))), 60)
        assert set(reasons) == {"abort"}
    assert _pool(bare).num_dispatched == 0
    stats = await bare.stats()
    assert (stats.running, stats.waiting, stats.kv_cache.usage) == (0, 0, 0)
    assert stats.requests["abort"] == 200


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_a_status_that_is_no_end_is_raised_from_its_own_stream(bare, simulated):
    bare._engine.engine.failures.append(simulated.ResponseType.OUT_OF_MEMORY)
    with pytest.raises(OutOfMemory, match="OUT_OF_MEMORY"):
        await _all(bare.stream(_request("1")))
    assert _pool(bare).num_dispatched == 0
    assert (await _all(bare.stream(_request("2"))))[-1].finish.reason == "length"


async def test_an_engine_that_is_gone_is_told_to_requests_and_health(bare, simulated, backend):
    await bare.health()
    inner = bare._engine.engine
    if backend == "pytorch":
        inner.die(RuntimeError("a step failed"))
    else:
        inner.failures.append(simulated.ResponseType.NO_QUEUE)
        inner.closed = True
    with pytest.raises(EngineDied):
        await _all(bare.stream(_request()))
    with pytest.raises(EngineDied):
        await bare.health()


async def test_what_runs_when_the_loop_dies_hears_of_it(simulated, files):
    made = await plugin.load(EngineConfig(native={"backend": "pytorch"}), files)
    streams = [made.stream(_endless(str(number))) for number in range(3)]
    for stream in streams:
        await anext(stream)
    made._engine.engine.die(RuntimeError("a step failed"))
    for stream in streams:
        with pytest.raises(EngineDied, match="ENGINE_STOP_ERROR"):
            await asyncio.wait_for(_all(stream), 20)
    await made.close()


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("no device found"), EngineStartupError),
        (SystemExit(1), EngineStartupError),
    ],
)
async def test_a_load_that_fails_says_why(load, monkeypatch, raised, error):
    from lmdeploy.simulation.backends import BackendEngine

    def fail(self, *args, **kwargs):
        raise raised

    monkeypatch.setattr(BackendEngine, "__init__", fail)
    with pytest.raises(error):
        async with load():
            pass


async def test_an_engine_that_comes_up_too_late_is_closed(load, monkeypatch):
    from lmdeploy.serve.core import AsyncEngine

    going, ended = threading.Event(), threading.Event()
    begin, end = AsyncEngine.__init__, AsyncEngine.close

    def slow(self, *args, **kwargs):
        going.wait(20)
        begin(self, *args, **kwargs)

    def watched(self):
        end(self)
        ended.set()

    monkeypatch.setattr(AsyncEngine, "__init__", slow)
    monkeypatch.setattr(AsyncEngine, "close", watched)
    with pytest.raises(EngineStartupError, match="startup_timeout"):
        async with load(startup_timeout=0.2):
            pass
    going.set()
    assert await asyncio.to_thread(ended.wait, 20)


@pytest.mark.parametrize(("module", "name"), [(startup, "_check_came_out"), (backend_module, "LMDeployBackend")])
async def test_an_engine_that_is_not_wanted_is_stopped_whatever_is_cancelled(
    simulated, backend, files, monkeypatch, survives_cancellation, module, name
):
    def refuse(*_):
        raise Failure("not what was asked for")

    monkeypatch.setattr(module, name, refuse)
    work = plugin.load(EngineConfig(native={"backend": backend}), files)
    assert await survives_cancellation(module, "stop", work)


# -- the engine as a whole --------------------------------------------------------------------------------------------


async def test_a_close_ends_open_streams(simulated, backend, files):
    made = await plugin.load(EngineConfig(native={"backend": backend}, scheduling={"max_num_seqs": 2}), files)
    streams = [made.stream(_endless(str(number))) for number in range(4)]
    await anext(streams[0])
    await asyncio.wait_for(made.close(), 20)
    for stream in streams:
        assert (await asyncio.wait_for(_all(stream), 20))[-1].finish.reason == "abort"
    after = await _all(made.stream(_request("after")))
    assert [delta.finish.reason for delta in after] == ["abort"]
    with pytest.raises(EngineClosed):
        await made.score([5, 6], 1)
    await made.close()


async def test_statistics_count_what_was_asked_for(load, backend):
    async with load() as engine:
        await engine.generate([[5, 6, 7], [8, 9]], sampling=GREEDY, max_tokens=4, ignore_eos=True)
        stats = await engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens, stats.requests["length"]) == (5, 8, 2)
    assert stats.queue_time.count == 2
    if backend == "pytorch":
        assert stats.time_to_first_token.count == 2
    else:  # results that come whole have no times of tokens
        assert stats.time_to_first_token is None


async def test_cached_tokens_are_told(load):
    prompt = [400] * 200
    async with load(kv_cache={"prefix_caching": True}) as engine:
        first = await engine.generate(prompt, sampling=GREEDY, max_tokens=2)
        second = await engine.generate(prompt, sampling=GREEDY, max_tokens=2)
        stats = await engine.stats()
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 192)
    assert (stats.kv_cache.prefix_queries, stats.kv_cache.prefix_hits) == (400, 192)


async def test_a_score_beside_requests_changes_none_of_them(simulated, backend, files):
    bare = await plugin.load(EngineConfig(native={"backend": backend}, scheduling={"max_num_seqs": 4}), files)
    expected = [token for delta in await _all(bare.stream(_request("first"))) for token in delta.token_ids]
    core, going, stepping = bare._engine.engine.executor.core, threading.Event(), threading.Event()
    step = core.step

    def held():
        stepping.set()
        going.wait(20)
        return step()

    core.step = held
    first = asyncio.create_task(_all(bare.stream(_request("held"))))
    await asyncio.to_thread(stepping.wait, 20)
    # All come while a step is under way, so those that may begin do so in the next one.
    score = asyncio.create_task(bare.score([5, 6, 7], 1))
    beside = [asyncio.create_task(_all(bare.stream(_request(str(number))))) for number in range(2)]
    for _ in range(20):
        await asyncio.sleep(0)
    going.set()
    assert len((await asyncio.wait_for(score, 20)).entries) == 3
    for task in (first, *beside):
        deltas = await asyncio.wait_for(task, 20)
        assert [token for delta in deltas for token in delta.token_ids] == expected
    await bare.close()


async def test_what_waits_for_a_score_can_be_aborted_and_closed(simulated, files):
    for close in (False, True):
        bare = await plugin.load(EngineConfig(native={"backend": "pytorch"}), files)
        core, going, stepping = bare._engine.engine.executor.core, threading.Event(), threading.Event()
        step = core.step
        core.step = lambda: (stepping.set(), going.wait(20), step())[-1]  # noqa: B023 called within the turn
        score = asyncio.create_task(bare.score([5, 6, 7], 1))
        await asyncio.to_thread(stepping.wait, 20)
        stream = bare.stream(_request())
        again = asyncio.create_task(bare.score([5, 6], 1))
        for _ in range(20):
            await asyncio.sleep(0)
        closing = asyncio.create_task(bare.close() if close else bare.abort("r"))
        await asyncio.sleep(0)
        going.set()
        await asyncio.wait_for(closing, 20)
        assert (await asyncio.wait_for(_all(stream), 20))[-1].finish.reason == "abort"
        found = await asyncio.wait_for(asyncio.gather(score, again, return_exceptions=True), 20)
        if not close:
            assert [each.token_ids for each in found] == [[5, 6, 7], [5, 6]]
            assert _pool(bare).num_dispatched == 0
            await bare.close()


# -- PyTorch alone ----------------------------------------------------------------------------------------------------


async def test_it_sleeps_and_wakes_and_goes_on(simulated, storyteller, expected):
    async with Engine.load(plugin, str(storyteller), isolation="none", native={"backend": "pytorch"}) as engine:
        await engine.sleep()
        await engine.health()
        for ask in (engine.generate(PROMPT), engine.score(PROMPT)):
            with pytest.raises(Misuse, match="wake"):
                await ask
        await engine.wake()
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)
    assert answer.token_ids == expected.token_ids


async def test_it_does_not_sleep_with_a_cache_of_prefixes(simulated, storyteller):
    fields = {"native": {"backend": "pytorch"}, "kv_cache": {"prefix_caching": True}}
    async with Engine.load(plugin, str(storyteller), isolation="none", **fields) as engine:
        with pytest.raises(UnsupportedCapability) as caught:
            await engine.sleep()
    assert caught.value.capability == "sleep"


async def test_a_nested_configuration_is_enough_to_load(simulated, backend, files):
    from msgspec.structs import replace

    nested = replace(files, config={"model_type": "with_images", "text_config": files.config})
    made = await plugin.load(EngineConfig(native={"backend": backend}), nested)
    assert (made.info.vocab_size, made.info.max_model_len) == (4096, 1024)
    await made.close()


async def test_sleep_ends_what_runs(simulated, files):
    made = await plugin.load(EngineConfig(native={"backend": "pytorch"}, scheduling={"max_num_seqs": 2}), files)
    streams = [made.stream(_endless(str(number))) for number in range(3)]
    await anext(streams[0])
    await asyncio.wait_for(made.sleep(), 20)
    for stream in streams:
        assert (await asyncio.wait_for(_all(stream), 20))[-1].finish.reason == "abort"
    await made.wake()
    assert (await _all(made.stream(_request("after"))))[-1].finish.reason == "length"
    await made.close()


async def test_an_abort_while_the_prompt_is_scored_is_one(simulated, files):
    made = await plugin.load(EngineConfig(native={"backend": "pytorch"}), files)
    core, going, stepping = made._engine.engine.executor.core, threading.Event(), threading.Event()
    step = core.step
    core.step = lambda: (stepping.set(), going.wait(20), step())[-1]
    stream = made.stream(_request(prompt_logprobs=1))
    reading = asyncio.create_task(_all(stream))
    await asyncio.to_thread(stepping.wait, 20)
    aborting = asyncio.create_task(made.abort("r"))
    await asyncio.sleep(0)
    going.set()
    await asyncio.wait_for(aborting, 20)
    (only,) = await asyncio.wait_for(reading, 20)
    assert (only.finish.reason, only.token_ids) == ("abort", [])
    assert _pool(made).num_dispatched == 0
    await made.close()


async def test_many_that_want_their_prompt_scored_get_on(simulated, files):
    made = await plugin.load(EngineConfig(native={"backend": "pytorch"}, scheduling={"max_num_seqs": 4}), files)
    streams = [made.stream(_request(str(number), prompt_logprobs=number % 2 or None)) for number in range(12)]
    ends = await asyncio.wait_for(asyncio.gather(*map(_all, streams)), 30)
    tokens = [[token for delta in deltas for token in delta.token_ids] for deltas in ends]
    assert tokens == [tokens[0]] * 12
    assert [deltas[-1].finish.prompt_logprobs is not None for deltas in ends] == [False, True] * 6
    await made.close()


async def test_drafts_are_counted(simulated, storyteller, draft):
    async with Engine.load(
        plugin,
        str(storyteller),
        isolation="none",
        speculative={"method": "eagle", "model": str(draft), "num_speculative_tokens": 3},
    ) as engine:
        await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, ignore_eos=True)
        found = (await engine.stats()).speculative
    assert found.drafted_tokens >= found.accepted_tokens > 0


async def test_requests_name_their_adapter(simulated, files, tmp_path, monkeypatch):
    from lmdeploy.simulation.pytorch import Engine as Simulated
    from msgspec.structs import replace

    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    seen, submit = [], Simulated.submit

    def watched(self, session, prompt, config, adapter_name):
        seen.append(adapter_name)
        return submit(self, session, prompt, config, adapter_name)

    monkeypatch.setattr(Simulated, "submit", watched)
    config = EngineConfig(lora={"adapters": {"a": "x"}})
    made = await plugin.load(config, replace(files, loras={"a": tmp_path}))
    await _all(made.stream(_request("1", lora="a")))
    await _all(made.stream(_request("2")))
    await made.close()
    assert seen == ["a", None]
    assert made.info.loras == ("a",)
