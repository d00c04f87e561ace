"""Attaching to *simulated* servers of the three engines: the same tokens as the reference engine, or a refusal."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyengine import Engine, SamplingParams
from anyengine.backend import EngineDescription, EnginePlugin
from anyengine.config import EngineConfig
from anyengine.errors import (
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine_reference import plugin as reference
from anyengine_server import LMDEPLOY, TRTLLM, VLLM, attach
from anyengine_server.client import ServerClient
from anyengine_server.testing import SimulatedServer

GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(seed=11, top_k=20, top_p=0.9, temperature=0.8)


def _module() -> Any:
    path = Path(__file__).parent / "simulated_servers.py"
    specification = importlib.util.spec_from_file_location("anyengine_server_simulated", path)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


simulated = _module()
SERVERS = {
    "vllm": (VLLM, simulated.SimulatedVLLM),
    "lmdeploy": (LMDEPLOY, simulated.SimulatedLMDeploy),
    "trtllm": (TRTLLM, simulated.SimulatedTRTLLM),
}


class Attaching(EnginePlugin):
    """What a plugin of such an engine does: nothing else is needed."""

    def __init__(self, dialect: Any) -> None:
        self.dialect = dialect

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=self.dialect.name, plugin_version="0", in_process=True, capabilities=self.dialect.capabilities()
        )

    async def load(self, config: EngineConfig, model: Any) -> Any:
        return await attach(config, model, self.dialect, engine=self.dialect.name)


@pytest.fixture
def serve(files: Any):
    @asynccontextmanager
    async def start(name: str, **changes: Any):
        backend = await reference.load(EngineConfig(model=files.name), files)
        made = SERVERS[name][1](backend, files, **changes)
        try:
            async with SimulatedServer(made.handle) as server:
                made.server = server
                yield made
                assert server.errors == []
        finally:
            await backend.close()

    return start


@pytest.fixture
def attached(serve: Any, storyteller: Path):
    @asynccontextmanager
    async def start(name: str, config: dict[str, Any] | None = None, **changes: Any):
        async with serve(name, **changes) as made:
            native = {"url": made.server.url}
            async with Engine.load(
                Attaching(SERVERS[name][0]), str(storyteller), native=native, **(config or {})
            ) as engine:
                yield engine, made
            await made.server.idle()

    return start


@pytest.fixture
async def expected(storyteller: Path):
    async with Engine.load("reference", str(storyteller)) as engine:
        yield engine


async def both(*engines: Engine, **options: Any) -> list[Any]:
    """The same request to each."""
    return [await engine.generate("Once upon a time", **options) for engine in engines]


@pytest.mark.parametrize("name", SERVERS)
async def test_tokens_are_those_of_the_reference_engine(name: str, attached: Any, expected: Engine):
    async with attached(name) as (engine, made):
        for options in (
            {"sampling": GREEDY},
            {"sampling": GREEDY, "stop": ["the"]},
            {"sampling": SamplingParams(temperature=0), "n": 2},
        ):
            ours, theirs = await both(engine, expected, max_tokens=40, **options)
            assert [one.token_ids for one in ours.choices] == [one.token_ids for one in theirs.choices]
            assert (ours.text, ours.finish_reason, ours.stop_reason) == (
                theirs.text,
                theirs.finish_reason,
                theirs.stop_reason,
            )
        ids = await expected.tokenize("A cat")
        assert (await engine.generate(ids, sampling=GREEDY, max_tokens=5)).prompt_token_ids == ids
        assert made.server.accepted <= 6  # connections are used again


@pytest.mark.parametrize("name", SERVERS)
async def test_a_sequence_ends_at_a_terminator_with_its_token(name: str, attached: Any, expected: Engine):
    async with attached(name) as (engine, _):
        first = (await expected.generate("Once upon a time", sampling=GREEDY, max_tokens=9)).token_ids[8]
        answer = await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=40, stop_token_ids=[first])
        assert (answer.finish_reason, answer.stop_reason, answer.token_ids[-1]) == ("stop", first, first)
        messages = [{"role": "user", "content": "Tell me about cats."}]
        ours, theirs = [
            await each.generate(messages=messages, sampling=GREEDY, max_tokens=300) for each in (engine, expected)
        ]
        assert ours.token_ids == theirs.token_ids
        assert (ours.finish_reason, ours.token_ids[-1] in engine.model.eos_token_ids) == ("stop", True)


async def test_a_stop_token_that_tensorrt_cuts_off_is_put_back(attached: Any, expected: Engine):
    stop = (await expected.generate("Once upon a time", sampling=GREEDY, max_tokens=9)).token_ids[8]
    async with attached("trtllm", cuts_stops=True) as (engine, _):
        answer = await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=40, stop_token_ids=[stop])
        assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", stop)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("call", ["stream", "generate"])
async def test_a_server_that_drops_stop_tokens_with_ignore_eos_is_ended_here(
    call: str, at_once: int, attached: Any, expected: Engine
):
    full = (await expected.generate("Once upon a time", sampling=GREEDY, max_tokens=40)).token_ids
    stop = full[6]
    due = full[: full.index(stop) + 1]
    options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 400, "stop_token_ids": [stop], "ignore_eos": True}
    async with attached("trtllm", drops_stops=True, at_once=at_once) as (engine, made):
        if call == "stream":
            async with engine.stream("Once upon a time", **options) as stream:
                chunks = [chunk async for chunk in stream]
            tokens, finish = [token for chunk in chunks for token in chunk.token_ids], chunks[-1].finish
            assert finish is not None
            ended = (finish.reason, finish.stop_reason, finish.usage.completion_tokens)
        else:
            answer = await engine.generate("Once upon a time", **options)
            tokens, ended = answer.token_ids, (answer.finish_reason, answer.stop_reason, answer.usage.completion_tokens)
        assert (tokens, ended) == (due, ("stop", stop, len(due)))
        await made.server.idle()
        # Its connection was closed, long before the server had made all 400.
        assert made.aborted == 1
        assert (made.bodies[-1]["ignore_eos"], made.bodies[-1]["stop_token_ids"]) == (True, [stop])


async def test_lmdeploy_ends_at_a_token_of_its_own_only_with_an_error(attached: Any, expected: Engine):
    own = (await expected.generate("Once upon a time", sampling=GREEDY, max_tokens=9)).token_ids[8]
    async with attached("lmdeploy", own_stops=[own]) as (engine, _):
        with pytest.raises(Failure, match="another end"):
            await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=40)


@pytest.mark.parametrize(("code", "kind"), [(400, InvalidRequest), (500, Failure), (503, EngineDied)])
async def test_lmdeploys_error_in_a_stream_is_typed_by_its_code(code: int, kind: type[Exception], attached: Any):
    async with attached("lmdeploy", fail_after=3, code=code) as (engine, _):
        with pytest.raises(kind, match="in its own words") as caught:
            await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=20)
        assert type(caught.value) is kind


async def test_lmdeploys_generate_answers_for_the_model_alone(serve: Any, storyteller: Path):
    async with serve("lmdeploy", adapters=("adapter",)) as made:
        for native, wrong in (({}, None), ({"served_model": "base"}, None), ({"served_model": "adapter"}, "base")):
            loading = Engine.load(Attaching(LMDEPLOY), str(storyteller), native={"url": made.server.url, **native})
            if wrong is None:
                async with loading as engine:
                    assert engine.info.loras == ()
                continue
            with pytest.raises(InvalidConfig, match=wrong) as caught:
                async with loading:
                    pass
            assert caught.value.field == "native.served_model"


async def test_a_tokenizer_that_ends_texts_with_a_special_token_is_the_same_one(attached: Any):
    async with attached("lmdeploy", adds_behind=[2]) as (engine, _):
        assert (await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=3)).token_ids


async def test_vllm_honours_each_sampling_parameter(attached: Any, expected: Engine):
    async with attached("vllm") as (engine, _):
        for sampling in (
            SEEDED,
            SamplingParams(seed=3, min_p=0.2),
            SamplingParams(temperature=0, repetition_penalty=1.5),
            SamplingParams(temperature=0, presence_penalty=1.5, frequency_penalty=0.5),
            SamplingParams(temperature=0, logit_bias={300: 50.0}),
            SamplingParams(seed=5, allowed_token_ids=[300, 301, 302]),
        ):
            ours, theirs = await both(engine, expected, max_tokens=12, min_tokens=3, sampling=sampling)
            assert ours.token_ids == theirs.token_ids, sampling


async def test_vllm_gives_logprobs_prompt_logprobs_and_scores(attached: Any, expected: Engine):
    async with attached("vllm") as (engine, _):
        assert engine.capabilities.logprobs == "raw-unless-structured"
        options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 6, "logprobs": 3, "prompt_logprobs": 2}
        ours, theirs = await both(engine, expected, **options)
        assert ours.logprobs == theirs.logprobs
        assert ours.prompt_logprobs == theirs.prompt_logprobs
        async with engine.stream("Once upon a time", sampling=GREEDY, max_tokens=6, logprobs=0) as stream:
            entries = [entry async for chunk in stream for entry in chunk.logprobs or []]
        assert [list(entry.top) for entry in entries] == [[token] for token in ours.token_ids]
        ids = [*ours.prompt_token_ids, *ours.token_ids]
        assert (await engine.score(ids)).entries == (await expected.score(ids)).entries


async def test_a_server_that_processes_logprobs_is_found_out(attached: Any):
    async with attached("vllm", processed=True) as (engine, _):
        assert (engine.capabilities.logprobs, engine.capabilities.score) == ("neutral-only", False)
        with pytest.raises(UnsupportedParameter, match="neutral"):
            await engine.generate("Once", sampling=GREEDY, logprobs=1)
    async with attached("vllm", max_logprobs=0) as (engine, _):
        assert engine.capabilities.logprobs == "none"
        with pytest.raises(UnsupportedCapability):
            await engine.generate("Once", logprobs=0)


async def test_vllm_honours_structures(attached: Any):
    async with attached("vllm") as (engine, made):
        answer = await engine.generate("Yes or no?", structured={"choice": ["yes", "no"]}, max_tokens=9)
        assert answer.text in {"yes", "no"}
        answer = await engine.generate("A number:", structured={"regex": "[0-9]{3}"}, max_tokens=9)
        assert answer.text.isdecimal()
        await engine.generate("JSON:", structured={"json_schema": {"type": "integer"}}, max_tokens=4)
        assert made.bodies[-1]["structured_outputs"] == {"json": {"type": "integer"}}


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("vllm", {"sampling": SamplingParams(bad_words=["a"])}, "sampling.bad_words"),
        ("vllm", {"sampling": SamplingParams(temperature=0.001)}, "sampling.temperature"),
        ("vllm", {"sampling": SamplingParams(logit_bias={1: 500.0})}, "sampling.logit_bias"),
        ("vllm", {"sampling": SamplingParams(min_p=0.1, top_p=0.5)}, None),
        ("vllm", {"min_tokens": 2, "ignore_eos": True}, None),
        ("vllm", {"priority": 1}, "priority"),
        ("lmdeploy", {"sampling": SamplingParams(seed=1)}, "sampling.seed"),
        ("lmdeploy", {"sampling": SamplingParams(repetition_penalty=1.5)}, "sampling.repetition_penalty"),
        ("lmdeploy", {"min_tokens": 2}, "min_tokens"),
        ("lmdeploy", {"ignore_eos": True}, "ignore_eos"),
        ("trtllm", {"sampling": SamplingParams(seed=1)}, "sampling.seed"),
        ("trtllm", {"sampling": SamplingParams(top_k=5000)}, "sampling.top_k"),
        ("trtllm", {"min_tokens": 2}, "min_tokens"),
    ],
)
async def test_what_a_dialect_cannot_say_is_refused_before_anything_is_sent(name, options, field, attached: Any):
    async with attached(name) as (engine, made):
        sent = len(made.bodies)
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate("Once upon a time", max_tokens=9, **options)
        assert field is None or caught.value.field == field
        assert len(made.bodies) == sent


@pytest.mark.parametrize("name", SERVERS)
async def test_everything_a_server_has_a_default_for_is_said(name: str, attached: Any):
    async with attached(name) as (engine, made):
        await engine.generate("Once upon a time", max_tokens=2)
        named = {"temperature", "top_p", "top_k", "max_tokens", "stop_token_ids"}
        named |= {"lmdeploy": {"min_p", "repetition_penalty"}, "trtllm": {"ignore_eos"}}.get(
            name, {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "min_tokens"}
        )
        assert named <= made.bodies[-1].keys()


async def test_an_unseeded_request_to_tensorrt_gets_a_seed(attached: Any):
    async with attached("trtllm") as (engine, made):
        for _ in range(2):
            await engine.generate("Once upon a time", max_tokens=2)
        seeds = {body["seed"] for body in made.bodies}
        assert len(seeds) == 2


@pytest.mark.parametrize("name", SERVERS)
async def test_leaving_a_stream_ends_the_request(name: str, attached: Any):
    async with attached(name) as (engine, made):
        async with engine.stream("Once upon a time", sampling=GREEDY, max_tokens=400) as stream:
            await anext(aiter(stream))
        await made.server.idle()
        assert made.aborted == 1


async def test_closing_ends_streams_with_abort(serve: Any, files: Any):
    from anyengine.backend import TokenRequest

    async with serve("vllm") as made:
        config = EngineConfig(model=files.name, native={"url": made.server.url})
        backend = await attach(config, files, VLLM, engine="vllm")
        request = TokenRequest(id="1", prompt_token_ids=[5, 6], sampling=GREEDY, max_tokens=500)
        stream = backend.stream(request)
        await anext(stream)
        await backend.close()
        await backend.close()
        last = [delta async for delta in stream][-1]
        assert last.finish is not None
        assert last.finish.reason == "abort"


async def test_an_error_in_a_stream_is_raised_after_what_came_before(attached: Any):
    async with attached("vllm", fail_after=3) as (engine, _):
        got: list[int] = []
        with pytest.raises(Failure, match="the engine failed"):  # noqa: PT012 the block is what is looked at
            async with engine.stream("Once upon a time", sampling=GREEDY, max_tokens=20) as stream:
                async for chunk in stream:
                    got += chunk.token_ids
        # Nothing that came is lost: the server fails after the event that has the third token, and perhaps the next. Of
        # more than three tokens the event need not be the same again, and the server would fail before the last.
        whole = await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=3)
    assert len(got) >= 3
    assert got[:3] == whole.token_ids


async def test_a_server_that_goes_away_is_a_death(attached: Any):
    async with attached("vllm") as (engine, made):
        async with engine.stream("Once upon a time", sampling=GREEDY, max_tokens=400) as stream:
            chunks = aiter(stream)
            await anext(chunks)
            await made.server.stop()
            with pytest.raises(EngineDied):
                async for _ in chunks:
                    pass
        for call in (engine.generate("a", max_tokens=1), engine.health(), engine.stats()):
            with pytest.raises(EngineDied):
                await call


async def test_statistics_are_the_servers(attached: Any):
    async with attached("vllm") as (engine, _):
        await engine.generate("Once upon a time", max_tokens=3)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.requests) == (0, 0, {"length": 3})
        assert (stats.kv_cache.capacity_tokens, stats.kv_cache.used_tokens, stats.preemptions) == (1024, 256, None)
        assert stats.time_to_first_token is not None
        assert (stats.time_to_first_token.counts, stats.time_to_first_token.sum) == ([2, 3, 1], 4.5)
    async with attached("lmdeploy") as (engine, _):
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.prompt_tokens) == (2, 1, None)
    async with attached("lmdeploy", without=("/metrics/",)) as (engine, _):  # started with --disable-metrics
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.native) == (None, None, {})
    async with attached("trtllm") as (engine, _):
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.kv_cache.usage, stats.prompt_tokens) == (2, 1, 0.25, None)


async def test_the_context_is_the_servers_or_shorter(attached: Any, serve: Any, storyteller: Path):
    async with attached("vllm") as (engine, _):
        assert engine.info.max_model_len == 512
    async with attached("vllm", {"max_model_len": 100}) as (engine, _):
        with pytest.raises(InvalidRequest, match="context"):
            await engine.generate("Once", max_tokens=200)
    with pytest.raises(InvalidConfig, match="more than the server's 512"):
        async with attached("vllm", {"max_model_len": 600}):
            pass


async def test_adapters_of_the_server_are_found_by_name(attached: Any):
    async with attached("vllm", lora=True) as (engine, made):
        assert engine.info.loras == ("adapter",)
        await engine.generate("Once", max_tokens=2, lora="adapter")
        assert made.bodies[-1]["model"] == "adapter"
    async with attached("vllm") as (engine, _):
        with pytest.raises(UnsupportedParameter):
            await engine.generate("Once", max_tokens=2, lora="adapter")


async def test_a_model_among_several_is_named(attached: Any, serve: Any, storyteller: Path):
    async with serve("vllm", several=True) as made:
        plugin = Attaching(VLLM)
        for native, wrong in (({"served_model": "nope"}, "no model 'nope'"), ({"served_model": "base"}, None)):
            loading = Engine.load(plugin, str(storyteller), native={"url": made.server.url, **native})
            if wrong is None:
                async with loading:
                    pass
                continue
            with pytest.raises(InvalidConfig, match=wrong):
                async with loading:
                    pass


async def test_a_server_with_another_tokenizer_is_refused(attached: Any):
    with pytest.raises(EngineStartupError, match="another tokenizer") as caught:
        async with attached("vllm", other_tokenizer=True):
            pass
    assert caught.value.field == "model"
    async with attached("vllm", without=("/tokenize",)) as (engine, _):  # started without that route
        assert engine.info.max_model_len == 512


async def test_no_server_and_unknown_options_and_fields_are_refused(storyteller: Path):
    plugin = Attaching(VLLM)
    for config, kind in (
        ({"native": {"url": "http://127.0.0.1:9", "connect_timeout": 1}}, EngineStartupError),
        ({"native": {"url": "http://127.0.0.1:9", "gpu_memory_utilization": 0.5}}, InvalidConfig),
        ({"native": {"url": "http://127.0.0.1:9"}, "dtype": "bfloat16"}, UnsupportedParameter),
    ):
        with pytest.raises(kind):
            async with Engine.load(plugin, str(storyteller), **config):
                pass


async def test_a_client_that_came_to_nothing_is_closed_whatever_is_cancelled(files: Any, survives_cancellation: Any):
    config = EngineConfig(model=files.name, native={"url": "http://127.0.0.1:9", "connect_timeout": 1})
    assert await survives_cancellation(ServerClient, "aclose", attach(config, files, VLLM, engine="vllm"))


async def test_many_streams_at_once_and_nothing_left(attached: Any, open_sockets: Any):
    before = open_sockets()
    async with attached("vllm") as (engine, _made):
        answers = await asyncio.gather(
            *(engine.generate(f"Story {number}", sampling=GREEDY, max_tokens=8) for number in range(64))
        )
        assert all(answer.token_ids for answer in answers)
    assert open_sockets() <= before


async def test_a_close_that_was_cancelled_is_finished_by_the_next(
    serve: Any, files: Any, monkeypatch: pytest.MonkeyPatch
):
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with serve("vllm") as made:
        config = EngineConfig(model=files.name, native={"url": made.server.url})
        backend = await Attaching(SERVERS["vllm"][0]).load(config, files)
        with monkeypatch.context() as patch:
            patch.setattr(backend._requests, "close", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await backend.close()
        await backend.close()
        assert backend._client._client.is_closed
        await made.server.idle()
