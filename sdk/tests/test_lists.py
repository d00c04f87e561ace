"""Lists of prompts and several completions of one: order, fairness, bounds, failures."""

import asyncio
import itertools

import pytest
from anyengine import (
    AnyEngineError,
    Completion,
    EngineDied,
    InvalidRequest,
    Overloaded,
    PluginError,
    RequestTimeout,
    SamplingParams,
    UnsupportedParameter,
)
from anyengine.testing import all_capabilities
from msgspec.structs import replace

SLOW = {"step_seconds": 0.001}


def echo(request):
    return request.prompt_token_ids


# -- lists -------------------------------------------------------------------------------------------------


async def test_five_thousand_prompts_come_back_in_order_and_never_more_than_the_engine_takes(scripted, load):
    most = 0

    def script(request):
        nonlocal most
        most = max(most, len(plugin.loaded[0]._running) + 1)
        return echo(request)

    plugin = scripted(script)
    async with load(plugin, scheduling={"max_num_seqs": 8, "max_queued_requests": 4}) as (engine, _):
        prompts = [[1 + i % 200, 1 + i // 200] for i in range(5000)]
        answers = await engine.generate(prompts)
        assert [answer.token_ids[:2] for answer in answers] == prompts
        assert most == 16


async def test_a_long_list_delays_a_single_prompt_by_one_place(scripted, load, until):
    order = []

    def script(request):
        order.append(request.prompt_token_ids)
        return [71]

    async with load(scripted(script), scheduling={"max_num_seqs": 1}) as (engine, _):
        many = asyncio.create_task(engine.generate([[1]] * 100))
        await until(lambda: order)
        before = len(order)
        await engine.generate([2])
        assert order.index([2]) <= before + 2
        await many


async def test_two_lists_share_the_engine_evenly(scripted, load):
    order = []

    def script(request):
        order.append(request.prompt_token_ids[0])
        return [71]

    async with load(scripted(script), scheduling={"max_num_seqs": 2}) as (engine, _):
        await asyncio.gather(engine.generate([[1]] * 60), engine.generate([[2]] * 60))
    assert 20 <= order[:60].count(1) <= 40


async def test_many_lists_at_once_are_bounded(endless, load):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1, "max_queued_requests": 3}) as (engine, backend):
        calls = [asyncio.create_task(engine.generate(["hi"] * 20, max_tokens=2)) for _ in range(20)]
        await asyncio.sleep(0)
        highest = 0
        while not all(call.done() for call in calls):
            highest = max(highest, engine._runtime._admission.waiting)
            assert len(backend._running) <= 2
            await asyncio.sleep(0)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert highest <= 5
    assert sum(isinstance(result, Overloaded) for result in results) > 0
    assert sum(isinstance(result, list) for result in results) > 0


async def test_an_overloaded_call_harms_nobody(endless, load):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1, "max_queued_requests": 1}) as (engine, backend):
        good = [asyncio.create_task(engine.generate("hi", max_tokens=3)) for _ in range(3)]
        await asyncio.sleep(0)
        for call in (engine.generate("hi"), engine.generate(["hi"], return_exceptions=True)):
            with pytest.raises(Overloaded) as caught:
                await call
            assert caught.value.retry_after > 0
        with pytest.raises(Overloaded):
            async with engine.stream("hi"):
                pass
        with pytest.raises(UnsupportedParameter) as refused:
            await engine.generate("hi", n=4)
        assert refused.value.field == "n"
        assert [len(answer.token_ids) for answer in await asyncio.gather(*good)] == [3, 3, 3]
        assert (await engine.stats()).queued == 0
        assert len(backend.requests) == 3
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]


async def test_n_counts_n_times_against_the_limit(endless, load):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1, "max_queued_requests": 2}) as (engine, _):
        three = asyncio.create_task(engine.generate("hi", n=3, max_tokens=2))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.generate("hi", n=2)
        one = await engine.generate("hi", n=1, max_tokens=2)
        assert (len((await three).choices), len(one.choices)) == (3, 1)


async def test_all_prompts_are_checked_before_any_is_submitted(scripted, load):
    async with load(scripted()) as (engine, backend):
        with pytest.raises(InvalidRequest) as caught:
            await engine.generate(["good", "good", [1, 100_000]])
        assert (caught.value.field, backend.requests) == ("prompts[2].prompt", [])


@pytest.mark.parametrize("bad", ["", [], [-1], [1, "a"], 5, None, [[1]], b"x", [{"content": "no role"}]])
async def test_a_bad_prompt_in_a_list_is_named_by_its_place(scripted, load, bad):
    async with load(scripted()) as (engine, backend):
        with pytest.raises(InvalidRequest) as caught:
            await engine.generate(["good", bad])
        assert (caught.value.field.split(".")[0], backend.requests) == ("prompts[1]", [])


async def test_a_failure_aborts_the_others_and_is_raised_as_it_is(endless, load, until):
    class Died(EngineDied):
        pass

    async with load(endless(**SLOW)) as (engine, backend):
        hook = engine._runtime._hooks.generate.get_hookimpls()[-1]
        generate = hook.function

        async def failing(request):
            if request.prompt_token_ids == [9]:
                await until(lambda: len(backend._running) == 3)
                raise Died("gone")
            return await generate(request)

        hook.function = failing
        with pytest.raises(Died) as caught:
            await engine.generate([[1], [2], [9], [3]])
        assert (caught.value.field, caught.value.__context__) == ("prompts[2]", None)
        assert [request.prompt_token_ids for request in backend.requests] == [[1], [2], [3]]
        assert len(backend.aborted) == 3


async def test_failures_come_back_in_place(scripted, load):
    async with load(scripted(echo)) as (engine, _):
        results = await engine.generate(["", [1, 2], [100_000], "x"], return_exceptions=True, max_tokens=1)
        assert [type(result) for result in results] == [InvalidRequest, Completion, InvalidRequest, Completion]
        assert [r.field for r in results if isinstance(r, AnyEngineError)] == ["prompts[0].prompt", "prompts[2].prompt"]
        assert results[1].token_ids == [1]


async def test_timeouts_come_back_in_place(endless, load):
    async with load(endless(**SLOW)) as (engine, _):
        results = await engine.generate(["a", "b"], return_exceptions=True, timeout=0.02)
        assert [(type(r), r.field) for r in results] == [
            (RequestTimeout, "prompts[0].timeout"),
            (RequestTimeout, "prompts[1].timeout"),
        ]


async def test_an_error_in_place_for_every_prompt_is_no_error_of_the_call(scripted, load):
    async with load(scripted()) as (engine, _):
        assert [type(r) for r in await engine.generate(["", []], return_exceptions=True)] == [InvalidRequest] * 2
        assert await engine.generate([]) == []


async def test_return_exceptions_without_a_list_is_refused(scripted, load):
    async with load(scripted()) as (engine, _):
        with pytest.raises(InvalidRequest) as caught:
            await engine.generate("hi", return_exceptions=True)
        assert caught.value.field == "return_exceptions"


async def test_a_list_may_mix_text_ids_and_chats(scripted, load):
    async with load(scripted(echo)) as (engine, _):
        chat = [{"role": "user", "content": "x"}]
        answers = await engine.generate(["ab", (65, 66), chat])
        assert [a.prompt_token_ids for a in answers] == [
            await engine.tokenize("ab"),
            [65, 66],
            await engine.tokenize(chat),
        ]


async def test_a_stream_takes_one_prompt(scripted, load):
    async with load(scripted()) as (engine, _):
        with pytest.raises(InvalidRequest, match="one prompt"):
            engine.stream(["a", "b"])


# -- several completions of one prompt ------------------------------------------------------------------------


async def test_n_completions_have_their_own_seeds_and_ids(scripted, load):
    async with load(scripted()) as (engine, backend):
        answer = await engine.generate("hi", n=3, sampling=SamplingParams(seed=2**63 - 2))
        assert [choice.seed for choice in answer.choices] == [2**63 - 2, 2**63 - 1, 0]
        assert [request.sampling.seed for request in backend.requests] == [2**63 - 2, 2**63 - 1, 0]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len({request.id for request in backend.requests}) == 3


async def test_without_a_seed_one_is_drawn_where_the_engine_would_not_vary(scripted, load):
    for unseeded, greedy in itertools.product(("fixed", "varies"), (False, True)):
        plugin = scripted(capabilities=replace(all_capabilities(), unseeded=unseeded))
        async with load(plugin) as (engine, _):
            sampling = SamplingParams(temperature=0 if greedy else 1)
            answers = [await engine.generate("hi", sampling=sampling, n=2) for _ in range(2)]
            seeds = [choice.seed for answer in answers for choice in answer.choices]
            if unseeded == "fixed" and not greedy:
                assert len(set(seeds)) == 4
                assert seeds[1] == seeds[0] + 1
            else:
                assert seeds == [None] * 4


@pytest.mark.parametrize("n", [1, 2, 5])
async def test_a_stream_has_one_terminal_chunk_for_each_index(scripted, load, n):
    def script(request):
        index = int(request.id.rpartition(".")[2]) if n > 1 else 0
        return [65 + index] * (index + 1)

    async with load(scripted(script)) as (engine, _), engine.stream("hi", n=n) as stream:
        chunks = [chunk async for chunk in stream]
        for index in range(n):
            own = [chunk for chunk in chunks if chunk.index == index]
            assert [chunk.finish is not None for chunk in own] == [False] * (len(own) - 1) + [True]
            assert [t for chunk in own for t in chunk.token_ids] == [65 + index] * (index + 1) + [256]
        assert [chunk async for chunk in stream] == []


async def test_a_slow_reader_of_several_sequences_costs_merged_chunks_not_memory(scripted, load):
    async with load(scripted([71] * 500)) as (engine, _), engine.stream("hi", n=2) as stream:
        chunks = 0
        async for _ in stream:
            chunks += 1
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(stream._inner._ready) <= 2
        assert chunks < 50


async def test_one_failing_sequence_aborts_the_others(faulty, load):
    async with load(faulty(itertools.cycle([71]))) as (engine, backend):
        stream = backend.stream

        async def broken():
            raise ValueError("no")
            yield

        engine._runtime._hooks.stream.get_hookimpls()[-1].function = lambda request: (
            broken() if request.id.endswith(".1") else stream(request)
        )
        for work in (engine.generate("hi", n=3, stop="zz"), read(engine.stream("hi", n=3))):
            with pytest.raises(PluginError, match="ValueError"):
                await work
            assert backend._running == {}


async def read(stream):
    async with stream:
        async for _ in stream:
            pass
