"""However a request is left, it is aborted in the engine before the exit returns, and its place comes back."""

import asyncio
import itertools
from time import monotonic

import anyio
import pytest
from anyengine import Engine, PluginError, RequestTimeout
from anyengine.backend import TokenDelta
from anyengine.errors import Misuse
from anyengine.runtime import choice

SLOW = {"step_seconds": 0.001}


class Boom(Exception):
    pass


def ids(backend):
    return [request.id for request in backend.requests]


@pytest.mark.parametrize("n", [1, 3])
async def test_breaking_out_aborts(endless, load, n):
    async with load(endless()) as (engine, backend):
        async with engine.stream("hi", n=n) as stream:
            async for _ in stream:
                break
            assert len(backend._running) == n
        assert (backend._running, sorted(backend.aborted)) == ({}, sorted(ids(backend)))


@pytest.mark.parametrize("n", [1, 3])
async def test_an_exception_in_the_body_aborts_and_is_raised(endless, load, n):
    async with load(endless()) as (engine, backend):
        with pytest.raises(Boom):  # noqa: PT012 what happens inside is the subject
            async with engine.stream("hi", n=n) as stream:
                async for _ in stream:
                    raise Boom
        assert sorted(backend.aborted) == sorted(ids(backend))


async def test_leaving_a_stream_waits_for_an_end_that_is_under_way(faulty, load):
    aborting, let_go = asyncio.Event(), asyncio.Event()

    async def stream(request):
        yield TokenDelta([71])
        if request.id.endswith(".0"):
            raise Boom
        await asyncio.Event().wait()

    async def abort(request_id):
        if request_id.endswith(".1"):
            aborting.set()
            await let_go.wait()

    async def read(chunks):
        async for _ in chunks:
            pass

    async with load(faulty(stream=stream, abort=abort)) as (engine, _):
        entered = engine.stream("hi", n=2)
        reading = asyncio.create_task(read(await entered.__aenter__()))
        await aborting.wait()  # one has failed, and the reader waits until the other has ended
        leaving = asyncio.create_task(entered.__aexit__(None, None, None))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not leaving.done()
        let_go.set()
        await leaving
        with pytest.raises(PluginError, match="Boom"):
            await reading


async def test_a_stream_that_is_never_read_reaches_no_engine(endless, load):
    async with load(endless()) as (engine, backend):
        async with engine.stream("hi", n=2):
            pass
        assert backend.requests == []


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_cancelling_the_task_aborts(endless, load, until, kind, n):
    async with load(endless(**SLOW)) as (engine, backend):

        async def read():
            async with engine.stream("hi", n=n) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(read() if kind == "stream" else engine.generate("hi", n=n))
        await until(lambda: len(backend._running) == n)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(backend.aborted) == sorted(ids(backend))


@pytest.mark.parametrize("kind", ["generate", "stream", "many"])
async def test_cancelling_before_anything_began_gives_everything_back(endless, load, kind):
    async with load(endless()) as (engine, backend):

        async def read():
            async with engine.stream("hi", n=3) as stream:
                async for _ in stream:
                    pass

        work = {"stream": read, "generate": lambda: engine.generate("hi", n=3), "many": lambda: engine.generate(["a"])}
        task = asyncio.create_task(work[kind]())
        for turns in range(3):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = asyncio.create_task(work[kind]())
            for _ in range(turns):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend._running == {}


async def test_cancelling_while_the_request_waits_for_a_place(endless, load, until):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1}) as (engine, backend):
        first, second, third = (asyncio.create_task(engine.generate("hi")) for _ in range(3))
        admission = engine._runtime._admission
        await until(lambda: admission.queued == 1 and len(backend.requests) == 2)
        third.cancel()
        with pytest.raises(asyncio.CancelledError):
            await third
        assert (admission.queued, len(backend.requests)) == (0, 2)
        for task in (first, second):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_a_second_cancellation_during_the_exit_does_not_cut_the_abort_short(faulty, load, until):
    begun, go = asyncio.Event(), asyncio.Event()
    plugin = faulty([71] * 2000)

    async with load(plugin) as (engine, backend):
        abort = backend.abort

        async def slow_abort(request_id):
            begun.set()
            await go.wait()
            await abort(request_id)

        engine._runtime._hooks.abort.get_hookimpls()[-1].function = slow_abort

        async def read():
            async with engine.stream("hi") as stream:
                async for _ in stream:
                    await asyncio.Event().wait()

        task = asyncio.create_task(read())
        await until(lambda: backend.requests)
        await asyncio.sleep(0)
        task.cancel()
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.aborted == ids(backend)


@pytest.mark.parametrize("n", [1, 3])
async def test_asyncio_timeout_round_the_body_aborts(endless, load, n):
    async with load(endless(**SLOW)) as (engine, backend):
        with pytest.raises(TimeoutError):  # noqa: PT012 what happens inside is the subject
            async with asyncio.timeout(0.02), engine.stream("hi", n=n) as stream:
                async for _ in stream:
                    pass
        assert sorted(backend.aborted) == sorted(ids(backend))


@pytest.mark.parametrize("n", [1, 3])
async def test_nested_anyio_scopes_round_the_body_abort(endless, load, n):
    async with load(endless(**SLOW)) as (engine, backend):
        with anyio.CancelScope() as outer, anyio.CancelScope():
            async with engine.stream("hi", n=n) as stream:
                async for _ in stream:
                    outer.cancel()
        assert outer.cancelled_caught
        assert sorted(backend.aborted) == sorted(ids(backend))


async def test_an_anyio_timeout_round_one_read_leaves_the_stream_usable(endless, load):
    async with load(endless(step_seconds=0.01)) as (engine, _), engine.stream("hi", max_tokens=2) as stream:
        chunks = aiter(stream)
        with anyio.move_on_after(0) as scope:
            await anext(chunks)
        assert scope.cancelled_caught
        assert [token async for chunk in chunks for token in chunk.token_ids] == [71, 68]


async def test_cancelling_a_list_aborts_all_of_it(endless, load, until):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 2}) as (engine, backend):
        task = asyncio.create_task(engine.generate(["hi"] * 50))
        await until(lambda: len(backend._running) == 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (len(backend.requests), sorted(backend.aborted)) == (4, sorted(ids(backend)))


# -- the request's own timeout -------------------------------------------------------------------------


async def test_a_timeout_hands_over_what_generate_had(endless, load, out_of_time):
    out_of_time()
    async with load(endless(**SLOW)) as (engine, backend):
        with pytest.raises(RequestTimeout) as caught:
            await engine.generate("hi", timeout=60)
        partial = caught.value.partial
        assert (partial.finish_reason, partial.stop_reason, partial.index, partial.alternatives) == (
            "abort",
            None,
            0,
            [],
        )
        assert partial.usage.completion_tokens == len(partial.token_ids) > 0
        assert partial.text == ("hello world. " * 100)[: len(partial.token_ids)]
        assert (caught.value.field, caught.value.engine) == ("timeout", "scripted")
        assert backend.aborted == ids(backend)


async def test_a_timeout_hands_over_text_that_was_held_back_for_a_stop_string(scripted, load, out_of_time):
    out_of_time()

    def script(_request):
        yield from [71, 68]
        while True:
            yield 75  # "hel", then "l" for ever

    async with load(scripted(script, **SLOW)) as (engine, _):
        with pytest.raises(RequestTimeout) as caught:
            await engine.generate("hi", timeout=60, stop="l" * 4000)
        partial = caught.value.partial
        assert partial.text == "he" + "l" * (len(partial.token_ids) - 2)


async def test_a_timeout_in_a_stream_comes_after_its_chunks_and_has_them_all(endless, load, out_of_time):
    out_of_time()
    async with load(endless(**SLOW)) as (engine, backend), engine.stream("hi", timeout=60) as stream:
        seen = []
        with pytest.raises(RequestTimeout) as caught:  # noqa: PT012 what happens inside is the subject
            async for chunk in stream:
                seen += chunk.token_ids
        assert len(seen) >= 5
        assert caught.value.partial.token_ids == seen
        assert backend.aborted == ids(backend)
        assert [chunk async for chunk in stream] == []


async def test_a_reader_that_comes_back_after_the_deadline_is_told(scripted, load, until, monkeypatch):
    drawn = []

    def script(_request):
        for token in itertools.cycle([71, 68]):
            drawn.append(token)
            yield token

    async with load(scripted(script, **SLOW)) as (engine, _), engine.stream("hi", timeout=60) as stream:
        chunks = aiter(stream)
        seen = list((await anext(chunks)).token_ids)
        await until(lambda: len(drawn) > len(seen), turns=2_000_000)  # lie ready when the reader comes back
        monkeypatch.setattr(choice, "monotonic", lambda: monotonic() + 3600)
        seen += (await anext(chunks)).token_ids
        with pytest.raises(RequestTimeout) as caught:
            await anext(chunks)
        assert (caught.value.partial.finish_reason, caught.value.partial.token_ids) == ("abort", seen)


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_a_timeout_of_several_sequences_has_the_part_of_each(endless, load, out_of_time, kind):
    out_of_time(tokens=1, sequences=3)
    async with load(endless(**SLOW)) as (engine, backend):
        with pytest.raises(RequestTimeout) as caught:  # noqa: PT012 what happens inside is the subject
            if kind == "generate":
                await engine.generate("hi", n=3, timeout=60)
            else:
                async with engine.stream("hi", n=3, timeout=60) as stream:
                    async for _ in stream:
                        pass
        choices = caught.value.partial.choices
        assert [choice.index for choice in choices] == [0, 1, 2]
        assert [choice.finish_reason for choice in choices] == ["abort"] * 3
        assert all(choice.token_ids for choice in choices)
        assert sorted(backend.aborted) == sorted(ids(backend))


async def test_a_sequence_that_had_ended_before_the_timeout_is_whole_in_the_partial(scripted, load, out_of_time):
    out_of_time()

    def script(request):
        yield 71
        while not request.id.endswith(".1"):
            yield 68

    async with load(scripted(script, **SLOW)) as (engine, _):
        with pytest.raises(RequestTimeout) as caught:
            await engine.generate("hi", n=2, timeout=60)
        assert [choice.finish_reason for choice in caught.value.partial.choices] == ["abort", "stop"]


async def test_a_timeout_before_the_first_token_has_no_partial(endless, load):
    async with load(endless(step_seconds=60)) as (engine, backend):
        with pytest.raises(RequestTimeout, match="after 0 tokens") as caught:
            await engine.generate("hi", timeout=0.01)
        assert (caught.value.partial, backend.aborted) == (None, ids(backend))


async def test_a_timeout_in_the_queue_reaches_no_engine(endless, load, until):
    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1}) as (engine, backend):
        running = [asyncio.create_task(engine.generate("hi")) for _ in range(2)]
        await until(lambda: len(backend.requests) == 2)
        with pytest.raises(RequestTimeout) as caught:
            await engine.generate("hi", timeout=0.01)
        assert (caught.value.partial, len(backend.requests)) == (None, 2)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_request_within_its_timeout_is_not_touched(scripted, load):
    async with load(scripted()) as (engine, backend):
        answer = await engine.generate("hi", timeout=60)
        assert (answer.text, answer.finish_reason, backend.aborted) == ("hello world. ", "stop", [])


# -- the context manager ---------------------------------------------------------------------------------


async def test_a_stream_is_read_inside_its_context_only(scripted, load):
    async with load(scripted()) as (engine, _):
        stream = engine.stream("hi")
        with pytest.raises(Misuse, match="inside its context"):
            aiter(stream)
        async with stream:
            pass
        with pytest.raises(Misuse, match="inside its context"):
            aiter(stream)
        with pytest.raises(Misuse, match="entered once"):
            async with stream:
                pass


async def test_closing_the_engine_ends_open_streams_with_abort_and_refuses_who_waits(endless, load, until):
    from anyengine import EngineClosed

    async with load(endless(**SLOW), scheduling={"max_num_seqs": 1}) as (engine, backend):
        running = [asyncio.create_task(engine.generate("hi")) for _ in range(2)]
        await until(lambda: len(backend.requests) == 2)
        waiting = asyncio.create_task(engine.generate("hi"))
        async with engine.stream("hi") as stream:
            await until(lambda: engine._runtime._admission.queued == 1)
            await asyncio.gather(engine.close(), engine.close())
            assert [(await task).finish_reason for task in running] == ["abort"] * 2
            with pytest.raises(EngineClosed):
                await waiting
            with pytest.raises(EngineClosed):
                await anext(aiter(stream))


async def test_a_close_that_is_cancelled_goes_on_to_its_end(faulty):
    begun, go, ended = asyncio.Event(), asyncio.Event(), []

    async def close():
        begun.set()
        await go.wait()
        ended.append(True)

    engine = await Engine.load(faulty(close=close))
    closing = asyncio.create_task(engine.close())
    await begun.wait()
    for _ in range(3):
        closing.cancel()
        await asyncio.sleep(0)
    second = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    assert (closing.done(), second.done(), ended) == (False, False, [])
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await second
    assert ended == [True]
