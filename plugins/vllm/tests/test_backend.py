"""The loaded engine over a scripted ``AsyncLLM``: what it makes of vLLM's answers."""

import asyncio
import json
from contextlib import aclosing
from types import SimpleNamespace

import pytest
from anyengine import EngineConfig, SamplingParams
from anyengine.backend import TokenRequest
from anyengine.errors import EngineDied, EngineStartupError, Failure, OutOfMemory, UnsupportedParameter
from anyengine_vllm import backend as backend_module
from anyengine_vllm.backend import VllmBackend, load_backend
from anyengine_vllm.stats import StatsRecorder

#: A prompt of three tokens, and what vLLM says of it.
PROMPT = [5, 6, 7]
ENTRIES = [None, {6: SimpleNamespace(logprob=-1.0)}, {7: SimpleNamespace(logprob=-2.0)}]


def output(token_ids, prompt_logprobs, finish_reason=None):
    sequence = SimpleNamespace(token_ids=token_ids, finish_reason=finish_reason, logprobs=None)
    return SimpleNamespace(
        outputs=[sequence],
        prompt_logprobs=prompt_logprobs,
        finished=finish_reason is not None,
        metrics=SimpleNamespace(queued_ts=1.0, scheduled_ts=1.25),
        num_cached_tokens=0,
    )


@pytest.fixture
def backend():
    """``backend(outputs, calls, cache, config fields)``: loaded, answering every request with the outputs."""

    def make(answers=(), calls=None, cache=None, **fields):
        async def generate(*_, **__):
            for answer in answers:
                yield answer

        config = EngineConfig(**fields)
        cache = {"block_size": 16, "num_gpu_blocks": 65, "enable_prefix_caching": True} | (cache or {})
        vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(**cache),
            scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=2048, enable_chunked_prefill=False),
            model_config=SimpleNamespace(get_vocab_size=lambda: 100, max_model_len=512, dtype="torch.float32"),
        )
        running = SimpleNamespace(
            llm=SimpleNamespace(
                **{"generate": generate, "is_sleeping": None, "vllm_config": vllm_config} | (calls or {})
            ),
            library=SimpleNamespace(
                sampling_params=dict, delta="delta", final_only="final", lora_request=SimpleNamespace
            ),
            device="cpu",
            sent={"dtype": "auto"},
            recorder=StatsRecorder(),
            log=SimpleNamespace(lines=lambda: ["what was logged last"]),
            processes=(SimpleNamespace(exitcode=-9),),
        )
        return VllmBackend(config, running)

    return make


async def _streamed(backend, **fields):
    request = TokenRequest(id="r", prompt_token_ids=PROMPT, sampling=SamplingParams(), max_tokens=8, **fields)
    return [delta async for delta in backend.stream(request)]


@pytest.mark.parametrize("method", ["stream", "generate"])
async def test_vllms_generator_has_ended_when_the_last_tokens_come(backend, method):
    ended = []

    async def generate(*_, **__):
        yield output([1], None)
        yield output([2], None, "length")
        ended.append(True)

    made = backend(calls={"generate": generate})
    request = TokenRequest(id="r", prompt_token_ids=PROMPT, sampling=SamplingParams(), max_tokens=2)
    if method == "generate":
        assert (await made.generate(request)).finish is not None
    else:
        stream = made.stream(request)
        assert (await anext(stream)).finish is None
        assert ended == []
        assert (await anext(stream)).finish is not None
    assert ended == [True]


async def test_a_stream_has_the_logprobs_of_the_prompt_that_came_with_its_first_output(backend):
    answers = [output([1], ENTRIES), output([2], []), output([3], [], "length")]
    *_, last = await _streamed(backend(answers), prompt_logprobs=0)
    assert [entry and entry.logprob for entry in last.finish.prompt_logprobs] == [None, -1.0, -2.0]


@pytest.mark.parametrize("entries", [[None], [], None])
async def test_what_is_aborted_before_its_prompt_was_computed_ends_as_aborted(backend, entries):
    (last,) = await _streamed(backend([output([], entries, "abort")]), prompt_logprobs=0)
    assert (last.finish.reason, last.finish.prompt_logprobs) == ("abort", None)


async def test_logprobs_of_the_prompt_are_not_given_unasked(backend):
    (last,) = await _streamed(backend([output([1], ENTRIES, "length")]))
    assert last.finish.prompt_logprobs is None


async def test_a_request_that_is_aborted_is_counted_with_the_time_that_it_waited(backend):
    async def nothing(*_):
        pass

    loaded = backend([output([1], None), output([2], None)], calls={"abort": nothing, "is_sleeping": nothing})
    request = TokenRequest(id="r", prompt_token_ids=PROMPT, sampling=SamplingParams(), max_tokens=8)
    async with aclosing(loaded.stream(request)) as stream:
        async for _ in stream:
            await loaded.abort("r")
            await loaded.abort("r")
    stats = await loaded.stats()
    assert (stats.requests["abort"], stats.queue_time.count, stats.queue_time.sum) == (1, 1, 0.25)


def test_sequences_at_once_are_those_of_all_copies(backend):
    assert backend().info.max_num_seqs == 8
    assert backend(parallel={"data": 2}).info.max_num_seqs == 16
    assert backend(parallel={"data": 2}, scheduling={"max_num_seqs": 16}).info.max_num_seqs == 16


def test_a_size_of_blocks_that_the_core_enlarged_is_refused(backend):
    backend(cache={"block_size": 32}, kv_cache={"block_size": 32})
    with pytest.raises(UnsupportedParameter) as caught:
        backend(cache={"block_size": 544}, kv_cache={"block_size": 32})
    assert (caught.value.field, caught.value.supported) == ("kv_cache.block_size", ["544"])


@pytest.mark.parametrize(
    ("said", "data", "expected"),
    [
        (None, 1, 1024),
        # All 65 blocks, one of which is never used: 32 of them are a context of 512.
        (65 * 16, 1, 1024),
        # Two kinds of layers, which take 32 and 16 blocks for a context.
        (65 * 512 // 48, 1, 682),
        # Of each copy.
        (65 * 16 // 2, 2, 1008),
        # A sliding window alone takes fewer; a context's own blocks are what is counted.
        (65 * 512 // 8, 1, 1024),
    ],
)
async def test_capacity_is_that_of_all_kinds_of_layers(backend, said, data, expected):
    loaded = backend(cache={"kv_cache_size_tokens": said}, parallel={"data": data})
    assert (await loaded.stats()).kv_cache.capacity_tokens == expected


def test_a_capacity_that_several_kinds_of_layers_share_is_refused(backend):
    wanted = {"capacity_tokens": 1024, "block_size": 16}
    backend(cache={"kv_cache_size_tokens": 65 * 16}, kv_cache=wanted)
    with pytest.raises(UnsupportedParameter, match="682 tokens fit, not 1024") as caught:
        backend(cache={"kv_cache_size_tokens": 65 * 512 // 48}, kv_cache=wanted)
    assert caught.value.field == "kv_cache.capacity_tokens"


def test_blocks_of_another_size_than_was_reckoned_with_are_told(backend):
    with pytest.raises(EngineStartupError, match=r"give kv_cache\.block_size=16"):
        backend(kv_cache={"capacity_tokens": 4096})


class EngineDeadError(Exception):
    """As vLLM raises it."""

    __module__ = "vllm.v1.engine.exceptions"


def _raising(error):
    async def call(*_):
        raise error

    return call


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineDeadError("gone"), EngineDied),
        (Exception("Call to add_lora method failed: CUDA out of memory. Tried"), OutOfMemory),
        (Exception("Call to add_lora method failed: no such module"), UnsupportedParameter),
        (ValueError("rank"), UnsupportedParameter),
    ],
)
async def test_why_an_adapter_was_not_loaded(backend, adapter, error, expected):
    loaded = backend(calls={"add_lora": _raising(error)}, lora={"max_rank": 4})
    with pytest.raises(expected) as caught:
        await loaded.load_lora("a", adapter)
    assert (type(caught.value), caught.value.__cause__) == (expected, error)
    if expected is EngineDied:
        assert (caught.value.exit_status, caught.value.log_tail) == (-9, ("what was logged last",))


@pytest.mark.parametrize(("error", "expected"), [(EngineDeadError("gone"), EngineDied), (Exception("x"), Failure)])
async def test_why_an_adapter_was_not_unloaded(backend, adapter, error, expected):
    async def add(_):
        pass

    loaded = backend(calls={"add_lora": add, "remove_lora": _raising(error)}, lora={"max_rank": 4})
    await loaded.load_lora("a", adapter)
    with pytest.raises(expected):
        await loaded.unload_lora("a")


# -- what is cancelled --------------------------------------------------------------------------------


async def test_a_score_that_is_cancelled_again_is_ended_first(backend, survives_cancellation):
    begun, aborted = asyncio.Event(), []

    async def generate(*_, **__):
        begun.set()
        await asyncio.Event().wait()
        yield

    async def abort(request_id):
        aborted.append(request_id)

    async def is_sleeping():
        return False

    made = backend(calls={"generate": generate, "abort": abort, "is_sleeping": is_sleeping})
    scoring = asyncio.create_task(made.score(PROMPT, 0))
    await begun.wait()
    scoring.cancel()
    assert await survives_cancellation(made, "abort", scoring)
    assert aborted == ["score-0"]


@pytest.mark.parametrize("made", [False, True])
async def test_an_engine_that_is_not_wanted_is_stopped_whatever_is_cancelled(
    backend, monkeypatch, survives_cancellation, made
):
    async def refuse(*_):
        raise Failure("not what was asked for")

    loaded = backend()
    loaded.prepare = refuse
    stopped = []

    async def nothing(*_):
        return loaded._running

    async def stop(running):
        stopped.append(running)

    def constructed(*_):
        if made:
            return loaded
        raise Failure("not what was asked for")

    monkeypatch.setattr(backend_module, "start", nothing)
    monkeypatch.setattr(backend_module, "stop", stop)
    monkeypatch.setattr(backend_module, "VllmBackend", constructed)
    assert await survives_cancellation(backend_module, "stop", load_backend(EngineConfig(), None))
    assert stopped == [loaded._running]
