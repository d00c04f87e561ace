"""A backend or plugin that breaks its contract: a PluginError that says how, and nothing is left behind."""

import asyncio
from time import monotonic

import anyio
import numpy as np
import pytest
from anyengine import (
    Engine,
    EngineConfig,
    EngineDied,
    EngineStartupError,
    EngineUnresponsive,
    GenerateRequest,
    InvalidConfig,
    PluginError,
    RequestTimeout,
    UnsupportedParameter,
)
from anyengine.backend import DeltaCollector, EngineDescription, EnginePlugin, TokenDelta, TokenFinish
from anyengine.capabilities import Capabilities
from anyengine.outputs import Score, TokenLogprobs
from anyengine.runtime import choice
from anyengine.runtime.local import LocalRuntime
from anyengine.stats import EngineStats
from anyengine.testing import EOS, ScriptedPlugin, all_capabilities
from msgspec.structs import replace

STOP, LENGTH, ABORT = (TokenFinish(reason) for reason in ("stop", "length", "abort"))
HALF = TokenLogprobs(71, -0.5, {71: -0.5})


def says(*deltas):
    """A stream method that yields these; an exception among them is raised."""

    async def stream(request):
        for delta in deltas:
            await asyncio.sleep(0)
            if isinstance(delta, Exception):
                raise delta
            yield delta

    return stream


BROKEN = {
    "no finish": ([TokenDelta([71])], {}, "without a finish"),
    "nothing at all": ([], {}, "without a finish"),
    "too many tokens": ([TokenDelta([71, 72, 73])], {"max_tokens": 2}, "3 tokens where max_tokens is 2"),
    "too many tokens, one by one": ([TokenDelta([71]), TokenDelta([72])], {"max_tokens": 1}, "2 tokens where"),
    "stop without a terminator": ([TokenDelta([71], None, STOP)], {}, r"last token \(71\) is none of \[256, 258\]"),
    "stop without a token": ([TokenDelta([], None, STOP)], {}, r"\(None\) is none of"),
    "length too early": ([TokenDelta([71], None, LENGTH)], {"max_tokens": 2}, "'length' after 1 of 2 tokens"),
    "length where it has stopped": ([TokenDelta([EOS], None, LENGTH)], {}, r"\(256\) terminates: reason 'stop' is due"),
    "more from the cache than the prompt has": (
        [TokenDelta([EOS], None, TokenFinish("stop", 3))],
        {},
        "gave 3 cached_tokens of a prompt of 2",
    ),
    "an unknown reason": ([TokenDelta([71], None, TokenFinish("eos"))], {}, "the reason 'eos'"),
    "on after the end": ([TokenDelta([71, EOS, 72])], {}, "terminating token 256"),
    "on after the end, next delta": ([TokenDelta([EOS]), TokenDelta([72])], {}, "terminating token 256"),
    "length at a terminator": ([TokenDelta([EOS], None, LENGTH)], {"max_tokens": 1}, "terminating token 256"),
    "an end before min_tokens": ([TokenDelta([71, EOS], None, STOP)], {"min_tokens": 2}, "after 1 tokens where min"),
    "an empty delta": ([TokenDelta([])], {}, "delta without a token"),
    "no log-probabilities": ([TokenDelta([71])], {"logprobs": 0}, r"of the tokens \[\] where those of \[71\]"),
    "too few of them": ([TokenDelta([71, 71], [HALF])], {"logprobs": 0}, "log-probabilities"),
    "those of another token": ([TokenDelta([72], [HALF])], {"logprobs": 0}, "log-probabilities"),
    "some that nobody asked for": ([TokenDelta([71], [HALF])], {}, "log-probabilities"),
    "no prompt_logprobs": ([TokenDelta([EOS], None, STOP)], {"prompt_logprobs": 0}, "prompt_logprobs for 2"),
    "too few prompt_logprobs": (
        [TokenDelta([EOS], None, TokenFinish("stop", None, [None]))],
        {"prompt_logprobs": 0},
        "prompt_logprobs for 2",
    ),
    "a foreign exception": ([TokenDelta([71]), ValueError("odd")], {}, "raised ValueError, .* does not map: odd"),
    "its own timeout": ([TimeoutError("socket")], {}, "raised TimeoutError"),
    "something else": (["text"], {}, "gave .*(a str in its stream, not a TokenDelta|'text' as .*got str)"),
}


@pytest.mark.parametrize("kind", ["generate", "stream", "generate with stops", "generate in time", "n"])
@pytest.mark.parametrize("fault", BROKEN)
async def test_a_broken_stream_is_a_plugin_error(faulty, load, fault, kind):
    deltas, options, message = BROKEN[fault]
    aborted = []

    async def abort(request_id):
        aborted.append(request_id)

    async with load(faulty(stream=says(*deltas), abort=abort)) as (engine, _):
        more = {"generate with stops": {"stop": "zz"}, "generate in time": {"timeout": 60}, "n": {"n": 2}}.get(kind, {})
        if kind in {"generate", "n"} and all(getattr(delta, "finish", 1) is None for delta in deltas):
            message = "without a finish"  # the backend's own generate reads the stream, and sees that first
        with pytest.raises(PluginError, match=message) as caught:  # noqa: PT012 what happens inside is the subject
            if kind == "stream":
                async with engine.stream("hi", **options | more) as stream:
                    async for _ in stream:
                        pass
            else:
                await engine.generate("hi", **options | more)
        assert caught.value.engine == "scripted"
        assert kind != "stream" or len(aborted) == 1


ILL_TYPED = {
    "a float as a token": (TokenDelta([71.0]), r"3?71.0 as token_ids\[0\]: expected int, got float"),
    "a boolean": (TokenDelta([71, True]), r"True as token_ids\[1\]: expected int, got bool"),
    "a number of NumPy's": (TokenDelta([np.int64(71)]), r"71\)? as token_ids\[0\]: expected int, got int64"),
    "a text": (TokenDelta(["71"]), r"'71' as token_ids\[0\]: expected int, got str"),
    "tokens as a text": (TokenDelta("GH"), "'G(H' as token_ids: expected array|' as token_ids.0.: expected int)"),
    "no list": (TokenDelta(71), "71 as token_ids: expected array, got int"),
    "a finish as a text": (TokenDelta([EOS], None, "stop"), "a str as finish, not a TokenFinish"),
    "a reason that is none": (TokenDelta([EOS], None, TokenFinish(["stop"])), r"the reason \['stop'\]"),
    "a count as a text": (TokenDelta([EOS], None, TokenFinish("stop", "4")), "'4' as cached_tokens: expected int"),
    "a logprob as a text": (
        TokenDelta([71], [TokenLogprobs(71, "-0.5", {})]),
        r"'-0.5' as \[0\].logprob: expected float, got str",
    ),
    "a logprob of NumPy's": (
        TokenDelta([71], [TokenLogprobs(71, np.float32(-0.5), {})]),
        r"-0.5\)? as \[0\].logprob: expected float, got float32",
    ),
    "a text among the alternatives": (
        TokenDelta([71], [TokenLogprobs(71, -0.5, {"71": -0.5})]),
        r"{'71': -0.5} as a key of \[0\].top: expected int, got str",
    ),
    "a prompt's entry": (
        TokenDelta([EOS], None, TokenFinish("stop", None, [None, HALF, 5])),
        r"5 as prompt_log.*\[2\]",
    ),
}


@pytest.mark.parametrize("kind", ["generate", "stream", "generate with stops", "n"])
@pytest.mark.parametrize("fault", ILL_TYPED)
async def test_a_value_of_the_wrong_type_is_named_with_what_it_has_to_be(faulty, load, fault, kind):
    delta, message = ILL_TYPED[fault]
    deltas = [delta] if delta.finish else [delta, TokenDelta([EOS], None, STOP)]
    options = {"generate with stops": {"stop": "zz"}, "n": {"n": 2}}.get(kind, {})
    options |= {"logprobs": 0} if delta.logprobs else {}
    options |= {"prompt_logprobs": 0} if "prompt" in fault else {}
    if delta.logprobs:
        deltas = [delta, TokenDelta([EOS], [TokenLogprobs(EOS, -0.5, {EOS: -0.5})], STOP)]
    async with load(faulty(stream=says(*deltas))) as (engine, _):
        with pytest.raises(PluginError, match=message) as caught:  # noqa: PT012 what happens inside is the subject
            if kind == "stream":
                async with engine.stream([1, 2, 3], **options) as stream:
                    async for _ in stream:
                        pass
            else:
                await engine.generate([1, 2, 3], **options)
        assert caught.value.engine == "scripted"


async def test_other_results_are_held_to_their_types_too(faulty, load):
    async def stats():
        return EngineStats(running="2")

    async def named_by_numbers():
        return EngineStats(native={"tokens": {7: 1, "none": object()}})

    async def score(token_ids, logprobs):
        return Score(token_ids, [None, TokenLogprobs(2, -0.5, {}), TokenLogprobs(3, None, {})])

    async with load(faulty(stats=stats, score=score)) as (engine, _):
        with pytest.raises(PluginError, match="gave '2' as running: expected int"):
            await engine.stats()
        with pytest.raises(PluginError, match=r"None as entries\[2\].logprob: expected float"):
            await engine.score([1, 2, 3])
    async with load(faulty(stats=named_by_numbers)) as (engine, _):
        with pytest.raises(PluginError, match=r"what cannot be sent as native.tokens.none: "):
            await engine.stats()


async def test_what_was_loaded_is_held_to_its_types_too(model_folder):
    class Boastful(ScriptedPlugin):
        async def load(self, config, model):
            backend = await super().load(config, model)
            backend._info = replace(backend.info, max_model_len="1024")
            return backend

    with pytest.raises(PluginError, match="'1024' as max_model_len: expected int, got str"):
        async with Engine.load(Boastful(lambda _: [71], str(model_folder))):
            pass


async def test_an_engine_that_cancels_itself_has_failed(faulty, load):
    """It is no cancellation of the caller's, to whom nothing would be told otherwise."""

    async def cancelled(**_):
        raise asyncio.CancelledError

    async def stream(request):
        yield TokenDelta([71])
        raise asyncio.CancelledError

    async with load(faulty(stream=stream, stats=cancelled)) as (engine, _):
        for options in ({}, {"stop": "zz"}, {"n": 2}):
            with pytest.raises(PluginError, match="cancelled its own"):
                await engine.generate("hi", **options)
            async with engine.stream("hi", **options) as chunks:
                with pytest.raises(PluginError, match="cancelled its own stream"):
                    async for _ in chunks:
                        pass
        with pytest.raises(PluginError, match="cancelled its own call"):
            await engine.stats()


async def test_what_comes_after_the_finish_is_not_read(faulty, load):
    twice = says(TokenDelta([71]), TokenDelta([EOS], None, STOP), TokenDelta([EOS], None, STOP))
    async with load(faulty(stream=twice)) as (engine, _), engine.stream("hi") as stream:
        assert [chunk.finish is not None async for chunk in stream] == [False, True]


async def test_our_own_errors_pass_as_they_are(faulty, load):
    async with load(faulty(stream=says(EngineDied("gone")))) as (engine, _):
        with pytest.raises(EngineDied) as caught:
            await engine.generate("hi")
        assert (caught.value.message, caught.value.engine) == ("gone", "scripted")


async def test_a_stream_method_that_is_a_coroutine_is_explained(faulty, load):
    async def stream(request):
        return DeltaCollector()

    async with load(faulty(stream=stream)) as (engine, _):
        with pytest.raises(PluginError, match="returned a coroutine from stream, not an asynchronous iterator"):
            await engine.generate("hi", stop="zz")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (TokenDelta([71]), "without a finish"),
        (None, "a NoneType, not a TokenDelta"),
        ([71], "a list, not a TokenDelta"),
        (ValueError("odd"), "raised ValueError"),
    ],
)
async def test_a_broken_generate_is_a_plugin_error(faulty, load, result, message):
    async def generate(request):
        if isinstance(result, Exception):
            raise result
        return result

    async with load(faulty(generate=generate)) as (engine, _):
        with pytest.raises(PluginError, match=message):
            await engine.generate("hi")


@pytest.mark.parametrize("n", [1, 2])
async def test_an_abort_that_fails_is_a_plugin_error_at_the_exit(faulty, load, n):
    async def abort(request_id):
        raise OSError("no")

    async with load(faulty([71] * 1000)) as (engine, backend):
        good = backend.abort
        hook = engine._runtime._hooks.abort.get_hookimpls()[-1]
        hook.function = abort
        with pytest.raises(PluginError, match="raised OSError"):  # noqa: PT012 what happens inside is the subject
            async with engine.stream("hi", n=n) as stream:
                async for _ in stream:
                    break
        for request in backend.requests:
            await good(request.id)


async def test_an_abort_that_fails_does_not_replace_what_the_body_raised(faulty, load):
    async def abort(request_id):
        raise OSError("no")

    async with load(faulty(stream=says(*[TokenDelta([71])] * 99), abort=abort)) as (engine, _):
        with pytest.raises(KeyError) as caught:  # noqa: PT012 what happens inside is the subject
            async with engine.stream("hi") as stream:
                async for _ in stream:
                    raise KeyError("body")
        assert "OSError" in caught.value.__notes__[0]
        with anyio.move_on_after(0.01) as scope:
            async with engine.stream("hi") as stream:
                async for _ in stream:
                    await anyio.sleep_forever()
        assert scope.cancelled_caught


async def test_a_failure_stays_the_error_when_the_abort_fails_too(faulty, load):
    async def abort(request_id):
        raise OSError("second")

    async with load(faulty(stream=says(ValueError("first")), abort=abort)) as (engine, _):
        for work in (engine.generate("hi"), engine.generate("hi", stop="zz"), engine.generate("hi", n=2)):
            with pytest.raises(PluginError, match=r"ValueError.*first") as caught:
                await work
            assert "second" in caught.value.__notes__[0]


async def test_an_error_while_a_generator_is_closed_is_a_plugin_error(faulty, load):
    async def stream(request):
        try:
            while True:
                yield TokenDelta([71])
        finally:
            raise ValueError("cleanup")

    async with load(faulty(stream=stream)) as (engine, _):
        with pytest.raises(PluginError, match=r"ValueError.*cleanup"):  # noqa: PT012 what happens inside is the subject
            async with engine.stream("hi") as reader:
                async for _ in reader:
                    break


@pytest.mark.parametrize("n", [1, 2])
async def test_a_generator_is_closed_in_the_task_that_read_it(faulty, load, n):
    tasks = []

    async def stream(request):
        tasks.append(asyncio.current_task())
        try:
            while True:
                await asyncio.sleep(0)
                yield TokenDelta([71])
        finally:
            tasks.append(asyncio.current_task())

    async with load(faulty(stream=stream)) as (engine, _):
        async with engine.stream("hi", n=n) as reader:
            async for _ in reader:
                break
        assert len(tasks) in (2, 2 * n)
        assert len(set(tasks)) == len(tasks) // 2


async def test_an_engine_that_does_not_end_in_time_is_a_timeout_of_ours(faulty, load):
    async def stream(request):
        await anyio.sleep_forever()
        yield

    async with load(faulty(stream=stream)) as (engine, _):
        with pytest.raises(RequestTimeout):
            await engine.generate("hi", timeout=0.01)


def never_ends():
    """A stream method that says "hi", and nothing more, and the streams that it has left."""
    left = []

    async def stream(request):
        try:
            yield TokenDelta([71, 72])
            await anyio.sleep_forever()
        finally:
            left.append(request.id)

    return stream, left


@pytest.mark.parametrize("n", [1, 2])
async def test_an_engine_that_never_says_its_last_word_after_an_abort_is_unresponsive(faulty, load, monkeypatch, n):
    stream, left = never_ends()
    monkeypatch.setattr(LocalRuntime, "health_timeout", 0.01)
    async with load(faulty(stream=stream)) as (engine, _):
        with pytest.raises(EngineUnresponsive, match=r"within 0.01 s of its abort \(health_timeout\)"):
            await engine.generate("hi", stop="h", n=n)
    assert len(left) == n


@pytest.mark.parametrize("options", [{"stop": "h"}, {"timeout": 0.01}], ids=["stop", "timeout"])
async def test_an_abort_that_does_not_return_is_unresponsive(faulty, load, monkeypatch, options):
    stream, left = never_ends()
    aborts = []

    async def abort(request_id):
        aborts.append(request_id)
        await anyio.sleep_forever()

    monkeypatch.setattr(LocalRuntime, "health_timeout", 0.01)
    async with load(faulty(stream=stream, abort=abort)) as (engine, _):
        with pytest.raises((EngineUnresponsive, RequestTimeout)) as caught:
            await engine.generate("hi", **options)
    said = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    told = ["within 0.01 s of its abort (health_timeout): it hangs, or its plugin's abort" in each for each in said]
    assert told == ([False, True] if "timeout" in options else [True])
    assert isinstance(caught.value, RequestTimeout) == ("timeout" in options)
    assert (len(aborts), len(left)) == (1, 1)


async def test_an_abort_that_fails_by_a_timeout_of_its_own_is_a_plugin_error(faulty, load):
    stream, _ = never_ends()

    async def abort(request_id):
        raise TimeoutError("socket")

    async with load(faulty(stream=stream, abort=abort)) as (engine, _):
        with pytest.raises(PluginError, match="raised TimeoutError, which its plugin does not map: socket"):
            await engine.generate("hi", stop="h")


async def test_the_last_word_after_an_abort_is_not_waited_for_beyond_the_timeout(faulty, load, monkeypatch):
    stream, left = never_ends()

    async def abort(request_id):
        monkeypatch.setattr(choice, "monotonic", lambda: monotonic() + 3600)

    async with load(faulty(stream=stream, abort=abort)) as (engine, _):
        with pytest.raises(RequestTimeout) as caught:
            await engine.generate("hi", stop="i", timeout=60)
    partial = caught.value.partial
    assert (partial.text, partial.token_ids, partial.finish_reason) == ("h", [71, 72], "stop")
    assert len(left) == 1


@pytest.mark.parametrize("call", ["stats", "health", "score"])
async def test_foreign_errors_of_other_methods_are_mapped(faulty, load, call):
    def at_once(*args, **kwargs):
        raise LookupError("at once")

    async def later(*args, **kwargs):
        raise LookupError("later")

    for words, method in (("at once", at_once), ("later", later)):
        async with load(faulty(**{call: score_by(method) if call == "score" else method_by(method)})) as (engine, _):
            with pytest.raises(PluginError, match=f"LookupError.*{words}"):
                await (engine.score([1, 2]) if call == "score" else getattr(engine, call)())


def method_by(method):
    def call():
        return method()

    return call


def score_by(method):
    def score(token_ids, logprobs):
        return method()

    return score


async def test_wrong_results_of_other_methods_are_plugin_errors(faulty, load):
    async def nothing():
        return None

    async def short(token_ids, logprobs):
        return Score([1], [None])

    async with load(faulty(stats=nothing, score=short)) as (engine, _):
        with pytest.raises(PluginError, match="a NoneType, not a EngineStats"):
            await engine.stats()
        with pytest.raises(PluginError, match="scored 1 tokens of 2"):
            await engine.score([1, 2])


async def test_validate_refuses_before_anything_is_submitted(faulty, load):
    def validate(request):
        raise UnsupportedParameter("no", field="sampling.top_k")

    def broken(request):
        raise LookupError("odd")

    async with load(faulty(validate=validate)) as (engine, backend):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate(["hi"])
        assert (caught.value.engine, caught.value.field) == ("scripted", "prompts[0].sampling.top_k")
        assert backend.requests == []
    async with load(faulty(validate=broken)) as (engine, _):
        with pytest.raises(PluginError, match="LookupError"):
            await engine.generate("hi")


async def test_a_close_that_fails_is_a_plugin_error_once(faulty):
    calls = []

    async def close():
        calls.append(1)
        raise OSError("no")

    engine = await Engine.load(faulty(close=close))
    with pytest.raises(PluginError, match="OSError"):
        await engine.close()
    await engine.close()
    assert calls == [1]


# -- loading -----------------------------------------------------------------------------------------------


class Loads(EnginePlugin):
    def __init__(self, folder, load, **description):
        self.folder, self._load, self.description = folder, load, description

    def describe(self):
        fields = {"name": "odd", "plugin_version": "0", "in_process": True, "capabilities": Capabilities()}
        return EngineDescription(
            **fields | {"models": {"m": str(self.folder)}, "default_model": "m"} | self.description
        )

    async def load(self, config, model):
        return await self._load(config, model)


@pytest.fixture
def loads(model_folder):
    return lambda load, **description: Loads(model_folder, load, **description)


def raising(error):
    async def load(config, model):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("odd"), PluginError, "raised ValueError while loading"),
        (TimeoutError("socket"), PluginError, "raised TimeoutError while loading"),
        (EngineStartupError("no device"), EngineStartupError, "no device"),
        (RuntimeError("x"), PluginError, "RuntimeError"),
    ],
)
async def test_errors_of_a_load_are_mapped(loads, error, expected, message):
    with pytest.raises(expected, match=message) as caught:
        await Engine.load(loads(raising(error)))
    assert caught.value.engine == "odd"


async def test_a_load_that_returns_no_backend(loads):
    async def load(config, model):
        return "backend"

    with pytest.raises(PluginError, match="returned a str, not a Backend"):
        await Engine.load(loads(load))


async def test_a_load_that_takes_too_long_is_cancelled(loads):
    cancelled = []

    async def load(config, model):
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(True)

    with pytest.raises(EngineStartupError, match=r"not ready after 0.01 s \(startup_timeout\)"):
        await Engine.load(loads(load), startup_timeout=0.01)
    assert cancelled == [True]


async def test_a_backend_that_turns_out_unusable_is_closed(loads, scripted):
    for broken in ("no info", "info raises", "wrong signature"):
        closed = []
        inner = scripted()

        async def load(config, model, broken=broken, closed=closed, inner=inner):
            backend = await inner.load(config, model)

            class Odd(type(backend)):
                if broken == "no info":
                    info = None
                elif broken == "info raises":
                    info = property(lambda self: {}["x"])
                else:

                    def stats(self, more):
                        raise NotImplementedError

                async def close(self):
                    closed.append(True)

            backend.__class__ = Odd
            return backend

        with pytest.raises(PluginError) as caught:
            await Engine.load(loads(load))
        assert (closed, caught.value.engine) == ([True], "odd")


async def test_a_plugin_that_cannot_describe_itself(model_folder):
    class Silent(Loads):
        def describe(self):
            raise LookupError("no words")

    with pytest.raises(PluginError, match="LookupError: no words"):
        await Engine.load(Silent(model_folder, None))


@pytest.mark.parametrize("engine", [5, None, object(), Loads])
async def test_what_is_no_engine_is_refused(engine):
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(engine)
    assert caught.value.field == "engine"


async def test_an_engine_that_cannot_run_here_says_why(loads):
    with pytest.raises(EngineStartupError, match="cannot run here: no driver"):
        await Engine.load(loads(raising(ValueError()), unavailable="no driver"))


@pytest.mark.parametrize("safe", [True, False])
async def test_an_engine_that_runs_elsewhere_need_neither_be_here_nor_be_safe_here(loads, safe):
    declared = {"attaches": True, "in_process": safe, "capabilities": Capabilities(native=True)}
    plugin = loads(raising(ValueError("reached")), unavailable="no driver", **declared)
    with pytest.raises(EngineStartupError, match="no driver"):
        await Engine.load(plugin, isolation="none")
    with pytest.raises(PluginError, match="ValueError"):
        await Engine.load(plugin, native={"url": "http://127.0.0.1:1"})


async def test_an_engine_that_is_not_safe_here_is_refused_unless_asked_for(loads):
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(loads(raising(ValueError()), in_process=False))
    assert caught.value.field == "isolation"
    assert "load it by its name" in caught.value.message
    with pytest.raises(PluginError, match="ValueError"):
        await Engine.load(loads(raising(ValueError()), in_process=False), isolation="none")


@pytest.mark.parametrize(
    ("place", "field"),
    [
        ({"isolation": "process"}, "isolation"),
        ({"environment": "vllm"}, "environment"),
        ({"env": {"A": "1"}}, "env"),
        ({"devices": [0]}, "devices"),
        ({"health_timeout": 5.0}, "health_timeout"),
    ],
)
async def test_a_plugin_object_runs_in_this_process_only(scripted, place, field):
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(scripted(), **place)
    assert caught.value.field == field


def test_without_asyncio_the_load_is_refused(scripted):
    """As under trio: no asyncio loop runs."""
    loading = Engine.load(scripted()).__await__()
    with pytest.raises(InvalidConfig, match="needs an asyncio event loop"):
        next(loading)


def test_a_loading_that_was_not_awaited_says_so_of_what_the_engine_will_have(scripted):
    loading = Engine.load(scripted())
    with pytest.raises(
        AttributeError, match=r"an engine has 'generate' once it is loaded: `engine = await Engine\.load"
    ):
        loading.generate("hi")
    with pytest.raises(AttributeError, match="'EngineLoading' object has no attribute 'genrate'"):
        loading.genrate("hi")
    assert (hasattr(loading, "generate"), hasattr(loading, "_runtime"), hasattr(loading, "__aenter__")) == (
        False,
        False,
        True,
    )


async def test_a_loading_does_nothing_until_it_is_awaited(scripted):
    plugin = scripted()
    Engine.load(plugin)
    assert plugin.loaded == []


async def test_a_load_takes_a_configuration_or_options(scripted):
    plugin = scripted()
    for options in ({"config": EngineConfig(), "dtype": "auto"}, {"config": EngineConfig(), "model": "x"}):
        with pytest.raises(InvalidConfig) as caught:
            await Engine.load(plugin, **options)
        assert caught.value.field == "config"
    with pytest.raises(InvalidConfig, match="an EngineConfig is needed, not a dict"):
        await Engine.load(plugin, config={})
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(plugin, model=5)
    assert caught.value.field == "model"


async def test_an_engine_without_token_prompts_refuses_ids(scripted, load):
    async with load(scripted(capabilities=replace(all_capabilities(), token_prompts=False))) as (engine, backend):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate([1, 2])
        assert caught.value.field == "prompt"
        await engine.generate(GenerateRequest(prompt="hi", max_tokens=1))
        assert backend.requests[0].prompt_text == "hi"
