"""The engine against a *simulated* TGI: launched and attached."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyengine import Engine, SamplingParams
from anyengine.config import EngineConfig
from anyengine.errors import (
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    Overloaded,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.hub import resolve_model
from anyengine.worker.supervisor import descendants
from anyengine_server import MalformedAnswer, ServerClient
from anyengine_tgi import generation as generation_module
from anyengine_tgi import plugin

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"


@pytest.fixture
def attached(serve: Any, storyteller: Path):
    @asynccontextmanager
    async def start(config: dict[str, Any] | None = None, native: dict[str, Any] | None = None, **limits: Any):
        async with serve(**limits) as (server, tgi):
            address = {"url": server.url, **(native or {})}
            async with Engine.load(plugin, str(storyteller), native=address, **(config or {})) as engine:
                tgi.seen.clear()  # what it was asked to learn what it gives
                yield engine, tgi, server
            await server.idle()

    return start


@pytest.fixture
async def expected(storyteller: Path):
    async with Engine.load("reference", str(storyteller)) as engine:
        yield engine


# -- attached ---------------------------------------------------------------------------------------


async def test_tokens_are_those_of_the_reference_engine(attached: Any, expected: Engine):
    async with attached() as (engine, _, _):
        for options in (
            {"sampling": GREEDY},
            {"sampling": SamplingParams(seed=7, temperature=0.7, top_k=30, top_p=0.9)},
            {"sampling": SamplingParams(seed=7)},
            {"sampling": SamplingParams(seed=7, top_k=4097)},  # one more than there are
            {"sampling": SamplingParams(temperature=0, repetition_penalty=1.4)},
            {"sampling": SamplingParams(seed=1), "n": 3},
            {"sampling": GREEDY, "stop": ["the"]},
        ):
            ours = await engine.generate(PROMPT, max_tokens=30, **options)
            theirs = await expected.generate(PROMPT, max_tokens=30, **options)
            assert [one.token_ids for one in ours.choices] == [one.token_ids for one in theirs.choices]
            assert (ours.text, ours.finish_reason, ours.stop_reason) == (
                theirs.text,
                theirs.finish_reason,
                theirs.stop_reason,
            )
            async with engine.stream(PROMPT, max_tokens=30, **{**options, "n": 1}) as stream:
                text = "".join([chunk.text async for chunk in stream])
            assert text == ours.choices[0].text


async def test_a_stop_token_that_tgi_never_hears_of_ends_the_request_there(attached: Any, expected: Engine):
    stop = (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=9)).token_ids[8]
    async with attached() as (engine, tgi, _):
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=400, stop_token_ids=[stop])
        assert (answer.finish_reason, answer.stop_reason, len(answer.token_ids)) == ("stop", stop, 9)
        while tgi.active:  # it sees the closed connection with its next event  # noqa: ASYNC110 another process, or the network, has to move
            await asyncio.sleep(0.001)


async def test_logprobs_of_neutral_requests(attached: Any, expected: Engine):
    async with attached() as (engine, _, _):
        options: dict[str, Any] = {"sampling": SamplingParams(seed=3), "max_tokens": 8}
        for wanted in (0, 1, 5):
            ours = await engine.generate(PROMPT, logprobs=wanted, **options)
            theirs = await expected.generate(PROMPT, logprobs=wanted, **options)
            assert ours.logprobs == theirs.logprobs
            async with engine.stream(PROMPT, logprobs=wanted, **options) as stream:
                assert [entry async for chunk in stream for entry in chunk.logprobs or []] == theirs.logprobs
        for options in ({"logprobs": 6}, {"logprobs": 1, "sampling": SamplingParams(top_k=3)}):
            with pytest.raises(UnsupportedParameter) as caught:
                await engine.generate(PROMPT, **options)
            assert caught.value.field == "logprobs"


async def test_prompt_logprobs_and_scores_where_the_server_gives_them(attached: Any, expected: Engine):
    async with attached(enable_prefill_logprobs=True) as (engine, _, _):
        assert engine.info.max_model_len == 1023
        theirs = await expected.generate(PROMPT, sampling=GREEDY, max_tokens=4, prompt_logprobs=0)
        assert (
            await engine.generate(PROMPT, sampling=GREEDY, max_tokens=4, prompt_logprobs=0)
        ).prompt_logprobs == theirs.prompt_logprobs
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=4, prompt_logprobs=0) as stream:
            async for chunk in stream:
                last = chunk
        assert last.finish.prompt_logprobs == theirs.prompt_logprobs
        assert (await engine.score(PROMPT)).entries == (await expected.score(PROMPT)).entries
        with pytest.raises(UnsupportedParameter, match="alternatives"):
            await engine.generate(PROMPT, prompt_logprobs=1)
    async with attached() as (engine, _, _):
        for call in (engine.generate(PROMPT, prompt_logprobs=0), engine.score(PROMPT)):
            with pytest.raises(UnsupportedCapability):
                await call


async def test_constraints(attached: Any):
    async with attached() as (engine, _, _):
        assert (await engine.generate("?", structured={"choice": ["y.s", "no"]}, max_tokens=9)).text in {"y.s", "no"}
        assert (await engine.generate("?", structured={"regex": "[0-9]{3}"}, max_tokens=9)).text.isdecimal()
        with pytest.raises(UnsupportedCapability):
            await engine.generate("?", structured={"json_schema": {"type": "object", "properties": {}}})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sampling": SamplingParams(min_p=0.1)}, "sampling.min_p"),
        ({"sampling": SamplingParams(presence_penalty=0.1)}, "sampling.presence_penalty"),
        ({"sampling": SamplingParams(frequency_penalty=0.1)}, "sampling.frequency_penalty"),
        ({"sampling": SamplingParams(logit_bias={1: 1.0})}, "sampling.logit_bias"),
        ({"sampling": SamplingParams(bad_words=["a"])}, "sampling.bad_words"),
        ({"sampling": SamplingParams(temperature=0.0001)}, "sampling.temperature"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"priority": 1}, "priority"),
        ({"cache_salt": "a"}, "cache_salt"),
    ],
)
async def test_what_tgi_cannot_do_is_refused_before_anything_is_sent(
    options: dict[str, Any], field: str, attached: Any
):
    async with attached() as (engine, tgi, _):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate(PROMPT, max_tokens=5, **options)
        assert caught.value.field == field
        with pytest.raises(UnsupportedParameter, match="text only"):
            await engine.generate([1, 2, 3], max_tokens=5)
        assert tgi.seen == []


async def test_chats_are_the_same_tokens(attached: Any, expected: Engine):
    async with attached() as (engine, _tgi, _):
        messages = [{"role": "user", "content": "Tell me a story about a dog."}]
        ours = await engine.generate(messages=messages, sampling=GREEDY, max_tokens=9)
        theirs = await expected.generate(messages=messages, sampling=GREEDY, max_tokens=9)
        assert (ours.prompt_token_ids, ours.token_ids) == (theirs.prompt_token_ids, theirs.token_ids)


async def test_a_server_with_another_tokenizer_is_refused(serve: Any, storyteller: Path, tmp_path: Path):
    from anyengine.testing import make_model_folder

    async with serve() as (server, _):
        loading = Engine.load(plugin, str(make_model_folder(tmp_path / "m")), native={"url": server.url})
        with pytest.raises(EngineStartupError, match="another tokenizer") as caught:
            async with loading:
                pass
        assert caught.value.field == "model"


async def test_a_prompt_of_which_the_server_makes_other_tokens_is_refused(attached: Any):
    async with attached() as (engine, tgi, _):
        honest = tgi.tokenize

        async def lying(exchange: Any) -> None:
            await exchange.reply(200, [{"id": 5, "text": "", "start": 0, "stop": 0}])

        tgi.tokenize = lying
        with pytest.raises(UnsupportedParameter, match="other tokens") as caught:
            await engine.generate(PROMPT, max_tokens=3)
        assert (caught.value.field, tgi.seen) == ("prompt", [])
        tgi.tokenize = honest
        assert (await engine.generate(PROMPT, max_tokens=3)).token_ids
        # What was proven once is not asked again.
        tgi.tokenize = lying
        assert (await engine.generate(PROMPT, max_tokens=3)).token_ids


async def test_a_server_that_computed_another_prompt_is_found_out(attached: Any):
    async with attached() as (engine, tgi, _):
        validated = tgi.validated

        def longer(body: Any, *, stream: bool) -> Any:
            valid = validated(body, stream=stream)
            valid.ids = [valid.ids[0], *valid.ids]
            return valid

        tgi.validated = longer
        with pytest.raises(MalformedAnswer, match="where 4 were due"):  # noqa: PT012 the block is what is looked at
            async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=3) as stream:
                async for _ in stream:
                    pass


async def test_a_text_that_the_server_takes_for_a_picture_is_refused(serve: Any, storyteller: Path, tmp_path: Path):
    shutil.copytree(storyteller, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    text = "Look: ![](http://example.org/a.png)!"
    async with serve() as (server, tgi):
        for kind, sees in (("llama", False), ("gemma3", True)):
            (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
            async with Engine.load(plugin, str(tmp_path), native={"url": server.url}) as engine:
                tgi.seen.clear()
                if sees:
                    with pytest.raises(UnsupportedParameter, match="a picture") as caught:
                        await engine.generate(text, max_tokens=2)
                    assert (caught.value.field, tgi.seen) == ("prompt", [])
                else:
                    assert (await engine.generate(text, max_tokens=2)).token_ids


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("error_type", "kind"),
    [
        ("validation", InvalidRequest),
        ("generation", Failure),
        ("overloaded", Overloaded),
        ("incomplete_generation", Failure),
        ("incomplete_generation_stream", Failure),
        ("healthcheck", EngineDied),
    ],
)
async def test_each_error_by_its_type_before_and_within_a_stream(
    streamed, error_type, kind, attached: Any, simulated_tgi
):
    async with attached() as (engine, tgi, _server):
        events = tgi.events

        async def failing(body: Any, *, stream: bool):
            async for number, event in _numbered(events(body, stream=stream)):
                if number == 2:
                    raise simulated_tgi.Refused(error_type, "in its own words")
                yield event

        tgi.events = failing
        got: list[int] = []
        with pytest.raises(  # noqa: PT012 the block is what is looked at
            Failure if kind is not InvalidRequest else InvalidRequest, match="in its own words"
        ) as caught:
            if streamed:
                async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=9) as stream:
                    async for chunk in stream:
                        got += chunk.token_ids
            else:
                await engine.generate(PROMPT, sampling=GREEDY, max_tokens=9)
        assert type(caught.value) is kind
        assert len(got) == (2 if streamed else 0)
        tgi.events = events
        assert (await engine.generate(PROMPT, max_tokens=2)).token_ids


async def _numbered(events: Any):
    number = 0
    async for event in events:
        yield number, event
        number += 1


async def test_long_requests_are_put_together_or_refused(attached: Any, expected: Engine, monkeypatch: Any):
    # TGI works requests off in pieces of 1,024 tokens; the simulation, and the plugin here, of 8.
    monkeypatch.setattr(generation_module, "PIECE", 8)
    async with attached(piece=8) as (engine, tgi, _):
        ours = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=30)
        assert ours.token_ids == (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=30)).token_ids
        assert [each["max_new_tokens"] for each in tgi.seen] == [8, 8, 8, 6]
        with pytest.raises(UnsupportedParameter, match="a constraint would start again") as caught:
            await engine.generate(PROMPT, structured={"regex": "[a-z ]{200}"}, max_tokens=60)
        assert caught.value.field == "max_tokens"
    async with attached(piece=8, max_input_tokens=20) as (engine, _, _):
        with pytest.raises(UnsupportedParameter, match="prompts of at most 20 tokens"):
            await engine.generate(PROMPT, sampling=GREEDY, max_tokens=30)
    refused = 0
    async with attached(piece=8) as (engine, _, _):
        for seed in range(30):
            try:
                await engine.generate(PROMPT, sampling=SamplingParams(seed=seed, temperature=1.5), max_tokens=30)
            except UnsupportedParameter as error:
                assert "no text gives its tokens again" in str(error)  # noqa: PT017 it depends on the sample
                refused += 1
    assert refused  # hot samples do not come back from their own text


async def test_long_requests_fill_the_context(attached: Any, expected: Engine, monkeypatch: Any):
    # TGI itself ends one where another whole piece does not fit, here after 24 tokens of 30.
    monkeypatch.setattr(generation_module, "PIECE", 8)
    async with attached(piece=8, max_total_tokens=34, max_input_tokens=33) as (engine, _, _):
        ours = await engine.generate(PROMPT, sampling=GREEDY)
        assert (ours.usage.prompt_tokens, len(ours.token_ids), ours.finish_reason) == (4, 30, "length")
        assert ours.token_ids == (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=30)).token_ids


async def test_the_pieces_of_a_long_request_have_random_numbers_of_their_own(attached: Any, monkeypatch: Any):
    monkeypatch.setattr(generation_module, "PIECE", 8)
    async with attached(piece=8) as (engine, tgi, _):
        calm = {"temperature": 0.3, "top_k": 2}
        for _ in range(2):
            await engine.generate(PROMPT, sampling=SamplingParams(seed=5, **calm), max_tokens=20)
        seeds = [each["seed"] for each in tgi.seen]
        assert seeds[0] == 5
        assert all(2**63 < seed < 2**64 for seed in seeds[1:3])
        assert len(set(seeds[:3])) == 3
        assert seeds[3:] == seeds[:3]
        tgi.seen.clear()
        await engine.generate(PROMPT, sampling=SamplingParams(**calm), max_tokens=20)
        assert all("seed" not in each for each in tgi.seen)


async def test_a_token_is_asked_for(attached: Any, serve: Any, storyteller: Path):
    async with attached(native={"token": "SeCret"}, api_key="secret") as (engine, _, _):
        assert (await engine.generate(PROMPT, max_tokens=2)).token_ids
    with pytest.raises(EngineStartupError, match="401"):
        async with attached(api_key="secret"):
            pass


async def test_attached_takes_nothing_that_a_start_would_honour(attached: Any):
    for config, native, kind in (
        ({"dtype": "bfloat16"}, {}, UnsupportedParameter),
        ({}, {"max_best_of": 2}, InvalidConfig),
        ({"max_model_len": 5000}, {}, InvalidConfig),
    ):
        with pytest.raises(kind):
            async with attached(config, native):
                pass
    async with attached({"max_model_len": 100, "scheduling": {"max_num_seqs": 2}}) as (engine, _, _):
        assert (engine.info.max_model_len, engine.info.max_num_seqs) == (100, 2)


async def test_no_more_run_at_once_than_were_asked_for(attached: Any):
    async with attached({"scheduling": {"max_num_seqs": 2}}) as (engine, tgi, _):
        most = 0

        async def watch(exchange: Any, number: int) -> None:
            nonlocal most
            most = max(most, tgi.active)

        tgi.before_event = watch
        streams = (engine.stream(f"Story {number}", sampling=GREEDY, max_tokens=9) for number in range(8))
        await asyncio.gather(*map(_drained, streams))
        assert most == 2


async def _drained(stream: Any) -> int:
    async with stream as opened:
        return sum([len(chunk.token_ids) async for chunk in opened])


async def test_stats_are_the_servers(attached: Any):
    async with attached() as (engine, _, _):
        before = await engine.stats()
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=7)
        stats = await engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert (stats.prompt_tokens or 0) - (before.prompt_tokens or 0) == answer.usage.prompt_tokens
        # What TGI does not report is unknown.
        assert (stats.generated_tokens, stats.kv_cache.usage, stats.time_to_first_token) == (None, None, None)
        assert before.queue_time is not None
        assert stats.queue_time is not None
        assert stats.queue_time.count - before.queue_time.count == 1
        grown = {name: stats.native[name] - before.native[name] for name in before.native}
        assert (grown["tgi_request_generated_tokens_sum"], grown["tgi_request_count"]) == (7, 1)


async def test_an_unhealthy_server_is_told(attached: Any):
    async with attached() as (engine, tgi, _):
        await engine.health()
        tgi.healthy = False
        with pytest.raises(EngineDied, match="unhealthy"):
            await engine.health()


# -- launched ---------------------------------------------------------------------------------------


async def test_a_launched_server_serves_and_leaves_nothing(launcher: Path, storyteller: Path, expected: Engine):
    async with Engine.load(plugin, str(storyteller), isolation="none", max_model_len=300) as engine:
        assert (engine.info.max_model_len, engine.info.dtype) == (300, "bfloat16")
        started = descendants(os.getpid())
        ours = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=20)
        assert ours.token_ids == (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=20)).token_ids
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=250) as stream:
            await anext(aiter(stream))
            assert (await engine.stats()).running == 1
        # An abort returns when the server has let go.
        assert (await engine.stats()).running == 0
    assert started
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]  # noqa: ASYNC240 procfs


async def test_a_server_works_in_a_folder_of_its_own(
    launcher: Path, storyteller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # TGI's router writes the tokenizer where it works, and reads what is there: two would have each other's.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(storyteller, "model")
    before = sorted(os.listdir())  # noqa: PTH208 names are what is compared
    async with Engine.load(plugin, "./model", isolation="none") as engine:
        assert (await engine.generate(PROMPT, max_tokens=2)).token_ids
        assert sorted(os.listdir()) == before  # noqa: PTH208
    assert sorted(os.listdir()) == before  # noqa: PTH208


async def test_drafts_have_room_behind_a_full_context(launcher: Path, storyteller: Path):
    drafting = {"method": "ngram", "num_speculative_tokens": 3}
    async with Engine.load(plugin, str(storyteller), isolation="none", speculative=drafting) as engine:
        assert engine.info.max_model_len == 1024 - 3


async def test_a_size_of_the_cache_is_refused_since_tgi_takes_what_fits(launcher: Path, storyteller: Path):
    loading = Engine.load(plugin, str(storyteller), isolation="none", kv_cache={"capacity_tokens": 4096})
    with pytest.raises(UnsupportedParameter) as caught:
        async with loading:
            pass
    assert caught.value.field == "kv_cache.capacity_tokens"


async def test_a_launcher_that_fails_says_why(launcher: Path, storyteller: Path):
    loading = Engine.load(plugin, str(storyteller), isolation="none", parallel={"tensor": 2})
    with pytest.raises(EngineStartupError, match="NotEnoughCUDADevices"):
        async with loading:
            pass
    assert not _launched()


def _launched() -> list[int]:
    """Processes of the simulated TGI."""
    return [pid for pid in descendants(os.getpid()) if b"simulated_tgi" in _command(pid)]


async def _begun() -> None:
    """Once one of them is there."""
    while not _launched():  # noqa: ASYNC110 another process has to move
        await asyncio.sleep(0.01)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_machine_without_a_launcher_says_so(storyteller: Path, monkeypatch: Any, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "text-generation-launcher" in (plugin.describe().unavailable or "")
    with pytest.raises(EngineStartupError, match="native="):
        await plugin.load(EngineConfig(), resolve_model(str(storyteller), builtin={}))


async def test_a_launched_server_that_is_killed_is_told_with_its_end(launcher: Path, storyteller: Path):
    async with Engine.load(plugin, str(storyteller), isolation="none") as engine:
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=900) as stream:
            chunks = aiter(stream)
            await anext(chunks)
            server = next(
                pid
                for pid in descendants(os.getpid())
                if b"simulated_tgi" in _command(pid) and b"guard" not in _command(pid)
            )
            os.kill(server, signal.SIGKILL)
            with pytest.raises(EngineDied, match="has ended") as caught:
                async for _ in chunks:
                    pass
        assert caught.value.exit_status == -signal.SIGKILL
        assert any("simulated TGI at" in line for line in caught.value.log_tail)
        with pytest.raises(EngineDied):
            await engine.health()


async def test_a_close_that_was_cancelled_is_finished_by_the_next(
    launcher: Path, storyteller: Path, monkeypatch: pytest.MonkeyPatch
):
    backend = await plugin.load(EngineConfig(model=str(storyteller)), resolve_model(str(storyteller), builtin={}))

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(backend._requests, "close", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await backend.close()
    await backend.close()
    assert not _launched()


async def test_a_client_that_came_to_nothing_is_closed_whatever_is_cancelled(
    storyteller: Path, survives_cancellation: Any
):
    config = EngineConfig(model=str(storyteller), native={"url": "http://127.0.0.1:9", "connect_timeout": 1})
    loading = plugin.load(config, resolve_model(str(storyteller), builtin={}))
    assert await survives_cancellation(ServerClient, "aclose", loading)


async def test_a_load_that_is_cancelled_again_leaves_nothing(
    launcher: Path, storyteller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives_cancellation: Any
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    config = EngineConfig(model=str(storyteller))
    loading = asyncio.ensure_future(plugin.load(config, resolve_model(str(storyteller), builtin={})))
    await _begun()
    loading.cancel()
    assert await survives_cancellation(ServerClient, "aclose", loading)
    assert not _launched()
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_a_load_that_is_given_up_leaves_nothing(launcher: Path, storyteller: Path):
    loading = asyncio.ensure_future(Engine.load(plugin, str(storyteller), isolation="none").__aenter__())
    await _begun()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not _launched()
