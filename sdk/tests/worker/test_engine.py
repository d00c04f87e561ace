"""An engine in a worker means what it means in this process."""

import asyncio
import logging
import time

import anyengine.sync
import pytest
from anyengine import (
    Engine,
    EngineClosed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PluginError,
    RequestTimeout,
    SamplingParams,
    SchedulingConfig,
    UnknownEngine,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.place import Worker


async def test_the_reference_engine_gives_the_same_in_a_worker():
    options = {"max_tokens": 24, "logprobs": 2, "sampling": SamplingParams(seed=5)}
    async with Engine.load("reference", isolation="process") as there, Engine.load("reference") as here:
        assert there.model == here.model
        assert there.info == here.info
        for prompt in ("Once upon a time", [1, 2, 3], [{"role": "user", "content": "hi"}]):
            theirs, ours = await there.generate(prompt, **options), await here.generate(prompt, **options)
            assert (theirs.text, theirs.token_ids, theirs.logprobs) == (ours.text, ours.token_ids, ours.logprobs)
            assert (theirs.finish_reason, theirs.usage, theirs.seed) == (ours.finish_reason, ours.usage, ours.seed)
            assert await there.tokenize(prompt) == await here.tokenize(prompt)
        assert await there.score("Once upon a time", logprobs=3) == await here.score("Once upon a time", logprobs=3)
        assert await there.detokenize([5, 6]) == await here.detokenize([5, 6])
        messages = [{"role": "user", "content": "hi"}]
        assert await there.apply_chat_template(messages) == await here.apply_chat_template(messages)
        stats = await there.stats()
        assert (stats.running, stats.generated_tokens) == (0, (await here.stats()).generated_tokens)
        await there.health()


async def test_an_environment_that_lacks_the_engine_is_named(python, monkeypatch):
    monkeypatch.setattr("anyengine.loading.choose_place", lambda engine, _config: Worker(engine, python, "other"))
    with pytest.raises(UnknownEngine, match="environment: in 'other' no engine is named 'nothing'; ") as caught:
        await Engine.load("nothing")
    assert (caught.value.engine, caught.value.field) == ("nothing", "environment")
    assert str(caught.value).endswith("`anyengine env list` shows what each environment has")


async def test_streams_of_several_sequences_end_each_with_one_finish(worker):
    async with worker("hello") as engine, engine.stream("hi", n=3, max_tokens=5) as stream:
        chunks = [chunk async for chunk in stream]
    for index in range(3):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [chunk.finish is not None for chunk in mine] == [False] * (len(mine) - 1) + [True]
        assert "".join(chunk.text for chunk in mine) == "hello"
        assert mine[-1].finish.usage.completion_tokens == sum(len(chunk.token_ids) for chunk in mine) == 5


async def test_a_slow_reader_gets_everything_in_merged_chunks(worker):
    async with worker("fast") as engine, engine.stream("hi", max_tokens=2000, logprobs=1) as stream:
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            await asyncio.sleep(0.05)
    assert sum(len(chunk.token_ids) for chunk in chunks) == sum(len(chunk.logprobs) for chunk in chunks) == 2000
    assert len(chunks) < 200


async def test_leaving_a_stream_frees_the_engine_before_the_exit_returns(worker):
    async with worker("slow") as engine:
        async with engine.stream("hi", max_tokens=4000) as stream:
            async for _ in stream:
                break
        assert (await engine.stats()).running == 0
        async with engine.stream("hi"):
            pass  # never read
        assert await asyncio.wait_for(engine.generate("hi", max_tokens=2), 60)


async def test_cancelling_a_generation_frees_the_engine_before_it_goes_on(worker):
    async with worker("slow") as engine:
        task = asyncio.create_task(engine.generate("hi", max_tokens=4000))
        while not (await engine.stats()).running:  # noqa: ASYNC110 another process
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await engine.stats()).running == 0


async def test_a_thousand_streams_cancelled_at_random_leave_nothing(worker):
    import random

    rng = random.Random(3)  # noqa: S311 a schedule

    async def one(engine, delay):
        async with engine.stream("hi", max_tokens=4000) as stream:
            async for _ in stream:
                await asyncio.sleep(delay)

    async with worker("slow", scheduling=SchedulingConfig(max_queued_requests=2000)) as engine:
        tasks = [asyncio.create_task(one(engine, rng.random() / 50)) for _ in range(1000)]
        for task in rng.sample(tasks, len(tasks)):
            await asyncio.sleep(rng.random() / 500)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.queued) == (0, 0, 0)
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]
        assert (engine._runtime._connection._calls, engine._runtime._connection._streams) == ({}, {})


async def test_a_list_is_checked_before_anything_is_submitted(worker):
    async with worker("hello") as engine:
        with pytest.raises(InvalidRequest) as caught:
            await engine.generate(["hi", [10_000]], max_tokens=2)
        assert caught.value.field == "prompts[1].prompt"
        assert (await engine.stats()).generated_tokens in (0, None)
        found = await engine.generate(["hi", [10_000], "ho"], max_tokens=2, return_exceptions=True)
        assert [type(item).__name__ for item in found] == ["Completion", "InvalidRequest", "Completion"]


async def test_errors_keep_their_facts(worker, tmp_path):
    async with worker("slow", scheduling=SchedulingConfig(max_num_seqs=1, max_queued_requests=0)) as engine:
        with pytest.raises(RequestTimeout) as timeout:
            await engine.generate("hi", max_tokens=4001, timeout=60)
        partial = timeout.value.partial
        assert partial.text.startswith("hello")
        assert (partial.finish_reason, partial.usage.completion_tokens) == ("abort", len(partial.token_ids))
        async with engine.stream("hi", n=2, max_tokens=4000):
            with pytest.raises(Overloaded) as overloaded:
                await engine.generate("hi")
        assert overloaded.value.retry_after > 0
        with pytest.raises(UnsupportedCapability) as unsupported:
            await engine.sleep()
        assert (unsupported.value.capability, unsupported.value.engine) == ("sleep", "slow")
        for call in (
            engine.embed("hi"),
            engine.load_lora("a", "b"),
            engine.unload_lora("a"),
            engine.reset_prefix_cache(),
        ):
            with pytest.raises(UnsupportedCapability):
                await call
    with pytest.raises(ModelNotFound):
        async with worker("slow", model=str(tmp_path / "nowhere")):
            pass


async def test_an_error_inside_the_engine_harms_one_request_and_shows_its_traceback(worker):
    async with worker("raises") as engine:
        good = asyncio.create_task(engine.generate("hi", max_tokens=12))
        with pytest.raises(PluginError, match=r"raised LookupError, .* an engine's own error") as caught:
            await engine.generate("hi", max_tokens=13)
        assert "in faulty" in str(caught.value.__cause__)
        assert (await good).text == "hello world."


async def test_a_field_that_the_worker_does_not_know_is_refused(worker):
    async with worker("hello") as engine:
        connection = engine._runtime._connection
        for fields, field in (
            ({"prompt": "hi", "novelty": 1}, "novelty"),
            ({"prompt": "hi", "sampling": {"novelty": 1}}, "sampling.novelty"),
        ):
            with pytest.raises(UnsupportedParameter) as caught:
                await connection.call("prepare", request=fields)
            assert caught.value.field == field
        with pytest.raises(InvalidRequest, match="no 'fly'"):
            await connection.call("fly")


async def test_what_cannot_be_sent_is_refused_and_nothing_is_lost(worker):
    async with worker("hello") as engine:
        with pytest.raises(InvalidRequest):
            await engine.generate(messages=[{"role": "user", "content": "hi", "picture": object()}])
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]


async def test_a_closed_engine_says_so_and_leaves_nothing(worker, processes, gone, descriptors):
    before = descriptors()
    async with worker("children") as engine:
        pids = processes(engine)
        assert len(pids) >= 4
        stream = engine.stream("hi", max_tokens=4000)
        await stream.__aenter__()
        await anext(aiter(stream))
    with pytest.raises(EngineClosed):
        await engine.generate("hi")
    assert [chunk.finish.reason async for chunk in stream if chunk.finish] == ["abort"]
    await stream.__aexit__(None, None, None)
    await engine.close()
    assert gone(pids) == []
    assert descriptors() == before


def test_the_synchronous_engine_runs_in_a_worker_too():
    with anyengine.sync.Engine.load("reference", isolation="process") as engine:
        answer = engine.generate("Once upon a time", max_tokens=8)
        with engine.stream("Once upon a time", max_tokens=8) as stream:
            assert sum(len(chunk.token_ids) for chunk in stream) == len(answer.token_ids) == 8


async def test_log_and_output_go_to_the_applications_logging(worker, caplog):
    caplog.set_level(logging.WARNING, logger="anyengine.worker")
    started = time.monotonic()
    async with worker("floods") as engine:
        assert (await engine.generate("hi")).text.startswith("hello")
    assert time.monotonic() - started < 30
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert any(record.name == "anyengine.worker.floods.engine" for record in caplog.records)


async def test_what_a_load_leaves_is_never_walked_through_again(worker):
    async with worker("settled") as engine:
        # A few thousand objects of Python itself and of the SDK, at least; of an engine, millions.
        assert (await engine.stats()).native["frozen"] > 10_000


async def test_the_worker_gets_its_variables_and_devices_and_no_path_of_ours(worker, monkeypatch):
    from anyengine import EngineDied

    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with pytest.raises(EngineDied) as caught:
        async with worker("reports", env={"MINE": "1"}, devices=[1, 0]):
            pass
    assert caught.value.message == repr({"MINE": "1", "CUDA_VISIBLE_DEVICES": "1,0", "PYTHONPATH": None})
