"""Extensions: wrappers round load, generate and stream."""

import asyncio
import itertools
from contextlib import aclosing

import msgspec
import pytest
from anyengine import (
    Chunk,
    Completion,
    Engine,
    EngineDied,
    Finish,
    InvalidConfig,
    InvalidRequest,
    PluginError,
    Timings,
    Usage,
    hookimpl,
)
from anyengine.errors import EngineStartupError

ANSWER = Completion("cached", [1], [2], "stop", 1, Usage(1, 1), Timings(0.0, None, 0.0))


class Named:
    """Puts its name round the text, and notes what happens."""

    def __init__(self, name, log=None):
        self.name, self.log = name, [] if log is None else log

    @hookimpl(wrapper=True)
    def load(self, engine, config):
        inner = yield

        async def loaded():
            self.log.append(f"{self.name} before")
            await inner
            self.log.append(f"{self.name} after")

        return loaded()

    @hookimpl(wrapper=True)
    def generate(self):
        inner = yield

        async def answered():
            answer = await inner
            return msgspec.structs.replace(answer, text=f"{self.name}({answer.text})")

        return answered()

    @hookimpl(wrapper=True)
    def stream(self):
        inner = yield

        async def chunks():
            try:
                async with aclosing(inner):
                    async for chunk in inner:
                        yield msgspec.structs.replace(chunk, text=f"{self.name}({chunk.text})")
            finally:
                self.log.append(f"{self.name} closed")

        return chunks()


async def test_the_first_named_is_outermost(scripted, load):
    log = []
    async with load(scripted([71]), extensions=[Named("a", log), Named("b", log)]) as (engine, _):
        assert log == ["a before", "b before", "b after", "a after"]
        assert (await engine.generate("hi")).text == "a(b(h))"
        assert [answer.text for answer in await engine.generate(["x", "y"])] == ["a(b(h))"] * 2
        async with engine.stream("hi", max_tokens=1) as stream:
            assert [chunk.text async for chunk in stream] == ["a(b(h))"]
        assert log[4:] == ["b closed", "a closed"]


async def test_leaving_early_closes_the_wrappers_and_aborts(scripted, load):
    log = []
    plugin = scripted(lambda _: itertools.cycle([71]))
    async with load(plugin, extensions=[Named("a", log), Named("b", log)]) as (engine, backend):
        log.clear()
        async with engine.stream("hi") as stream:
            async for _ in stream:
                break
        assert log == ["b closed", "a closed"]
        assert backend.aborted == [backend.requests[0].id]
        async with engine.stream("hi"):
            pass
        assert len(backend.requests) == 1


async def test_who_answers_itself_keeps_the_request_from_the_engine(scripted, load):
    class Cache:
        @hookimpl(wrapper=True)
        def generate(self):
            yield

            async def answered():
                return ANSWER

            return answered()

        @hookimpl(wrapper=True)
        def stream(self):
            yield

            async def chunks():
                yield Chunk("cached", [1], finish=Finish("stop", 1, ANSWER.usage, ANSWER.timings))

            return chunks()

    async with load(scripted(), extensions=[Cache()], scheduling={"max_queued_requests": 1}) as (engine, backend):
        assert await engine.generate("hi") == ANSWER
        assert await engine.generate(["a"] * 5) == [ANSWER] * 5
        async with engine.stream("hi", n=2) as stream:
            assert [chunk.text async for chunk in stream] == ["cached"]
        assert backend.requests == []


async def test_who_tries_again_submits_again(faulty, load):
    class Retry:
        @hookimpl(wrapper=True)
        def generate(self):
            inner = yield

            async def again():
                try:
                    return await inner
                except EngineDied:
                    return await inner

            return again()

    async with load(faulty([71]), extensions=[Retry()]) as (engine, _):
        hook = engine._runtime._hooks.generate.get_hookimpls()[-1]
        good, seen = hook.function, []

        async def once(request):
            seen.append(request.id)
            if len(seen) == 1:
                raise EngineDied("gone")
            return await good(request)

        hook.function = once
        assert (await engine.generate("hi")).text == "h"
        assert len(set(seen)) == 2


async def test_errors_pass_through_wrappers_and_their_own_come_out(scripted, load):
    class Guard(Named):
        @hookimpl(wrapper=True)
        def generate(self, request):
            inner = yield

            async def guarded():
                if request.prompt == "bad":
                    raise LookupError("not that")
                return await inner

            return guarded()

        @hookimpl(wrapper=True)
        def stream(self, request):
            yield
            raise LookupError("not that")

    async with load(scripted(), extensions=[Named("a"), Guard("g")]) as (engine, backend):
        with pytest.raises(LookupError):
            await engine.generate("bad")
        with pytest.raises(LookupError):
            await engine.generate(["good", "bad"])
        with pytest.raises(LookupError):
            async with engine.stream("hi"):
                pass
        with pytest.raises(InvalidRequest):
            await engine.generate("")
        assert len(backend.requests) <= 1


@pytest.mark.parametrize("hook", ["generate", "stream", "load"])
async def test_a_wrapper_that_forgets_to_return_is_told(scripted, hook):
    class Forgetful:
        pass

    def forgets(self):
        yield

    setattr(Forgetful, hook, hookimpl(wrapper=True)(forgets))
    with pytest.raises(PluginError, match=f"{hook} hook returned a NoneType"):  # noqa: PT012 what happens inside is the subject
        async with Engine.load(scripted(), extensions=[Forgetful()]) as engine:
            if hook == "generate":
                await engine.generate("hi")
            else:
                async with engine.stream("hi"):
                    pass


class LoadWith:
    def __init__(self, work):
        self.work = work

    @hookimpl(wrapper=True)
    def load(self):
        inner = yield
        return self.work(inner)


async def test_a_load_wrapper_that_never_loads_is_a_plugin_error(scripted):
    async def never(inner):
        pass

    with pytest.raises(PluginError, match="never awaited"):
        await Engine.load(scripted(), extensions=[LoadWith(never)])


@pytest.mark.parametrize("fault", ["twice", "raises", "cancels"])
async def test_an_engine_whose_load_wrapper_fails_afterwards_is_closed(scripted, fault):
    closed = []
    plugin = scripted()

    async def work(inner):
        await inner
        if fault == "twice":
            await inner
        if fault == "cancels":
            raise asyncio.CancelledError
        raise LookupError("late")

    expected = {"twice": PluginError, "raises": LookupError, "cancels": asyncio.CancelledError}[fault]
    original = type(plugin).load

    async def load(self, config, model):
        backend = await original(self, config, model)
        close = backend.close

        async def noted():
            closed.append("closed")
            await close()

        backend.close = noted
        return backend

    plugin.__class__ = type("Noted", (type(plugin),), {"load": load})
    with pytest.raises(expected):
        await Engine.load(plugin, extensions=[LoadWith(work)])
    assert closed == ["closed"]


async def test_an_error_of_the_load_passes_through(scripted):
    seen = []

    async def watch(inner):
        try:
            await inner
        except EngineStartupError as error:
            seen.append(error)
            raise

    class Bad(type(scripted())):
        async def load(self, config, model):
            raise EngineStartupError("no")

    plugin = scripted()
    plugin.__class__ = Bad
    with pytest.raises(EngineStartupError) as caught:
        await Engine.load(plugin, extensions=[LoadWith(watch)])
    assert seen == [caught.value]


def unmarked(self):
    yield


BAD = {
    "no hook": [object()],
    "a hook without its mark": [type("X", (), {"generate": unmarked})()],
    "an unknown name": ["no-such-extension"],
    "a text": "tracing",
    "a number": 5,
    "wrong arguments": [type("X", (), {"generate": hookimpl(wrapper=True)(lambda self, nothing: (yield))})()],
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_extension_is_refused_before_anything_is_loaded(scripted, case):
    plugin = scripted()
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(plugin, extensions=BAD[case])
    assert (caught.value.field, plugin.loaded) == ("extensions", [])
    twice = Named("a")
    with pytest.raises(InvalidConfig):
        await Engine.load(plugin, extensions=[twice, twice])
