"""The backend on the *simulated* TensorRT-LLM: what the conformance suite does not look at."""

import asyncio
import json

import msgspec
import pytest
from anyengine import Engine, EngineConfig, SamplingParams
from anyengine.backend import TokenRequest
from anyengine.backend.logits import row_logprobs
from anyengine.errors import EngineDied, EngineStartupError, Failure, InvalidConfig, InvalidRequest, PluginError
from anyengine.hub import resolve_model
from anyengine_conformance.adapters import make_adapter
from anyengine_trtllm import backend as backend_module
from anyengine_trtllm import outputs, plugin

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"
ONE_AT_A_TIME = {"max_num_seqs": 1}

pytestmark = pytest.mark.anyio


@pytest.fixture
async def expected(storyteller):
    """What the reference engine answers."""
    async with Engine.load("reference", str(storyteller)) as engine:
        return await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)


def _request(**fields):
    return TokenRequest(**{"id": "r", "prompt_token_ids": [5, 6], "sampling": GREEDY, "max_tokens": 9, **fields})


async def test_tokens_are_the_reference_engines(load, expected):
    async with load() as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)
        assert answer.token_ids == expected.token_ids
        tokens = []
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=24) as stream:
            async for chunk in stream:
                tokens += chunk.token_ids
        assert tokens == expected.token_ids


async def test_deltas_are_what_tensorrt_llm_calls_the_difference_and_no_list_of_its_own(simulated, load):
    async with load():
        llm = simulated.made[-1]
        params = simulated.classes["SamplingParams"](end_id=-1, temperature=0.0, max_tokens=6)
        reader, steps = outputs.Reader(_request(max_tokens=6), cached_tokens=True), []
        result = llm.generate_async([5, 6], params, streaming=True)
        async for step in result:
            assert step is result
            delta = reader.read(step)
            assert delta.token_ids == step.outputs[0].token_ids_diff
            assert delta.token_ids is not step.outputs[0].token_ids
            steps.append(delta)
        assert [token for delta in steps for token in delta.token_ids] == result.outputs[0].token_ids
        assert [delta.finish is not None for delta in steps] == [False] * (len(steps) - 1) + [True]


async def test_an_abort_is_final_and_frees_the_cache(simulated, load):
    async with load() as engine:
        async with engine.stream(PROMPT, ignore_eos=True, max_tokens=500) as stream:
            async for _ in stream:
                break
        assert (await engine.stats()).running == 0
        core = simulated.made[-1].executor.core
        assert core.scheduler.pool.used == 0


async def test_an_abort_of_a_request_that_waits_for_a_place_returns(simulated, storyteller, tmp_path, monkeypatch):
    # TensorRT-LLM drops it, and gives no last output.
    from anyengine_trtllm import live as module

    monkeypatch.setattr(module, "_UNANSWERED", 0.1)
    config, files = _loading(storyteller, tmp_path)
    alone = config.model_copy(update={"lora": None, "scheduling": config.scheduling.model_copy(update=ONE_AT_A_TIME)})
    backend = await plugin.load(alone, msgspec.structs.replace(files, loras={}))
    try:
        scheduler = simulated.made[-1].executor.core.scheduler
        first = backend.stream(_request(id="a", max_tokens=900))
        await anext(first)
        second = backend.stream(_request(id="b", max_tokens=900))
        async with asyncio.timeout(20):
            while not scheduler.waiting:  # noqa: ASYNC110 it has no event to wait for
                await asyncio.sleep(0)
            await backend.abort("b")
        delta = await anext(second)
        assert (delta.token_ids, delta.finish.reason) == ([], "abort")
        assert (await backend.stats()).requests["abort"] == 1
    finally:
        await backend.close()


async def test_a_slow_reader_gets_larger_chunks_and_every_token(load, expected):
    async with load() as engine, engine.stream(PROMPT, sampling=GREEDY, max_tokens=24) as stream:
        tokens, chunks = [], 0
        async for chunk in stream:
            tokens, chunks = tokens + chunk.token_ids, chunks + 1
            if chunks == 1:
                while (await engine.stats()).running:  # noqa: ASYNC110 the engine has no event to wait for
                    await asyncio.sleep(0)
        assert tokens == expected.token_ids
        assert chunks < len(tokens)


async def test_statistics_have_the_names_of_the_contract(simulated, load, facts):
    async with load() as engine:
        await engine.generate(PROMPT, max_tokens=4)
        llm = simulated.made[-1]
        iterations = llm.executor.drain()
        assert iterations != []
        keys = facts["iteration_stats"]
        for iteration in iterations:
            nested = {"kvCacheStats", "specDecodingStats"}
            assert set(iteration) - nested <= set(keys["top"])
            for name in nested:
                assert set(iteration[name] or {}) <= set(keys[name])


async def test_events_of_the_cache_are_counted(load):
    async with load(native={"kv_cache_config": {"event_buffer_max_size": 16}}) as engine:
        await engine.generate(PROMPT, max_tokens=2)
        assert (await engine.stats()).native["kv_cache_events"] == {"stored": 1}


async def test_drafts_are_counted(load):
    async with load(speculative={"method": "ngram"}) as engine:
        await engine.generate("la la la la la la la la", sampling=GREEDY, max_tokens=24, ignore_eos=True)
        found = (await engine.stats()).speculative
        assert found.drafted_tokens >= found.accepted_tokens >= 0
        assert found.drafted_tokens > 0


async def test_an_engine_is_built_saved_and_loaded(simulated, load, tmp_path, expected):
    native = {"backend": "tensorrt", "engine_dir": str(tmp_path / "engine")}
    made = len(simulated.made)
    for again in (False, True):
        async with load(native=native, max_model_len=256) as engine:
            answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)
            assert answer.token_ids == expected.token_ids
            assert engine.info.max_model_len == 256
        # What was built is not built again, nor told how.
        assert (simulated.made[-1].args.build_config is None) is again
    assert len(simulated.made) == made + 2
    assert json.loads((tmp_path / "engine" / "config.json").read_text())["build_config"]["max_seq_len"] == 256


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_model_len": 512}, "max_model_len"),
        ({"scheduling": {"max_num_seqs": 7}}, "scheduling.max_num_seqs"),
        ({"scheduling": {"max_num_batched_tokens": 300}}, "scheduling.max_num_batched_tokens"),
        ({"dtype": "float16"}, "dtype"),
        ({"quantization": "fp8"}, "quantization"),
        ({"parallel": {"tensor": 2}}, "parallel.tensor"),
    ],
    ids=str,
)
async def test_an_engine_that_was_built_for_something_else_is_refused(load, tmp_path, fields, named):
    native = {"backend": "tensorrt", "engine_dir": str(tmp_path / "engine")}
    async with load(native=native, max_model_len=256):
        pass
    with pytest.raises(InvalidConfig) as caught:
        async with load(native=native, **fields):
            pass
    assert caught.value.field == named
    async with load(native=native) as engine:
        assert engine.info.max_model_len == 256


async def test_a_folder_with_something_else_is_refused(load, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidConfig) as caught:
        async with load(native={"backend": "tensorrt", "engine_dir": str(tmp_path)}):
            pass
    assert caught.value.field == "native.engine_dir"


async def test_requests_name_their_adapter(simulated, simulation, storyteller, tmp_path, monkeypatch):
    for seed, name in enumerate(("a", "b")):
        assert make_adapter(storyteller, tmp_path / name, seed)
    seen = []
    generate = simulation.SimulatedLLM.generate_async

    def watched(self, *args, lora_request=None, **kwargs):
        seen.append(lora_request)
        return generate(self, *args, lora_request=lora_request, **kwargs)

    monkeypatch.setattr(simulation.SimulatedLLM, "generate_async", watched)
    backend = await plugin.load(*_loading(storyteller, tmp_path))
    seen.clear()
    try:
        await backend.load_lora("b", tmp_path / "b")
        await backend.generate(_request(lora="a"))
        await backend.generate(_request(id="s", lora="b"))
        await backend.generate(_request(id="t"))
        with pytest.raises(InvalidRequest):
            await backend.generate(_request(id="u", lora="c"))
        await backend.unload_lora("b")
        with pytest.raises(InvalidRequest):
            await backend.generate(_request(id="v", lora="b"))
    finally:
        await backend.close()
    assert [(each.lora_int_id, each.lora_path) for each in seen[:2]] == [
        (1, str(tmp_path / "a")),
        (2, str(tmp_path / "b")),
    ]
    assert seen[2:] == [None]


def _loading(folder, tmp_path):
    from anyengine import EngineConfig
    from anyengine.hub import ModelFiles

    files = ModelFiles(
        name="m",
        path=folder,
        tokenizer_path=folder,
        config=json.loads((folder / "config.json").read_bytes()),
        eos_token_ids=frozenset({0, 2}),
        loras={"a": tmp_path / "a"},
    )
    return EngineConfig(lora={"adapters": {"a": "x"}}), files


async def test_a_prompt_that_the_cache_knows_still_gives_all_its_log_probabilities(load):
    prompt = "There was a little girl who lived near the sea, and " * 6
    async with load() as engine:
        first = await engine.generate(prompt, sampling=GREEDY, max_tokens=2)
        second = await engine.generate(prompt, sampling=GREEDY, max_tokens=2, prompt_logprobs=0)
        assert first.usage.cached_tokens == 0
        assert len(second.prompt_logprobs) == second.usage.prompt_tokens


async def test_log_probabilities_are_the_log_softmax_of_each_row(simulation):
    import numpy as np

    logits = np.random.default_rng(1).normal(size=(130, 9)).astype(np.float32)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens = [int(number) for number in np.arange(130) % 9]
    entries = row_logprobs(simulation.Tensor(logits), tokens, 3)
    assert [entry.token_id for entry in entries] == tokens
    for entry, row in zip(entries, expected, strict=True):
        best = np.argsort(-row)[:3].tolist()
        assert list(entry.top)[:3] == best
        assert set(entry.top) == {*best, entry.token_id}
        assert entry.top == pytest.approx({token: row[token] for token in entry.top}, abs=1e-5)
        assert entry.logprob == entry.top[entry.token_id]


async def test_logits_that_are_missing_are_an_error_and_no_guess():
    class Output:
        token_ids = (7, 8)
        finish_reason = "length"
        generation_logits = None

    class Result:
        outputs = (Output,)
        cached_tokens = 0

    with pytest.raises(Failure, match="logits"):
        outputs.Reader(_request(logprobs=1), cached_tokens=True).read(Result)


@pytest.mark.parametrize("reason", ["timeout", "not_finished"])
async def test_a_reason_that_is_none_of_ours_is_a_failure(reason):
    class Output:
        token_ids = (7,)
        finish_reason = reason

    class Result:
        outputs = (Output,)

    with pytest.raises(Failure, match=reason):
        outputs.Reader(_request(), cached_tokens=True).read(Result)


async def test_an_end_token_that_is_left_out_is_put_back_and_not_twice():
    class Output:
        token_ids = (7, 8)
        finish_reason = "stop"

    class Result:
        outputs = (Output,)
        cached_tokens = 0

    for end, found in ((9, [7, 8, 9]), (8, [7, 8])):
        request = _request(min_tokens=1, eos_token_ids=frozenset({end}))
        assert outputs.Reader(request, cached_tokens=False).read(Result).token_ids == found


@pytest.mark.parametrize("sampler", ["TRTLLMSampler", "TorchSampler"])
async def test_a_stop_token_that_is_the_last_token_allowed_stops(load, expected, sampler):
    # The sampler in PyTorch says of it that the length ended the sequence.
    length, stop = next((n + 1, t) for n, t in enumerate(expected.token_ids) if n and t not in expected.token_ids[:n])
    async with load(native={"sampler_type": sampler}) as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=length, stop_token_ids=[stop])
        assert answer.token_ids == expected.token_ids[:length]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


async def test_a_failure_of_one_request_is_raised_from_its_own_stream(simulated, load, monkeypatch):
    async with load() as engine:
        llm, generate = simulated.made[-1], simulated.made[-1].generate_async

        def failing(inputs, **kwargs):
            if len(inputs) == 1:
                raise llm.request_error("CUDA out of memory")
            return generate(inputs, **kwargs)

        monkeypatch.setattr(llm, "generate_async", failing)
        answers = await engine.generate([[5, 6], [7]], sampling=GREEDY, max_tokens=3, return_exceptions=True)
        assert type(answers[1]).__name__ == "OutOfMemory"
        assert len(answers[0].token_ids) == 3


async def test_a_result_that_ends_without_a_reason_is_the_plugins_error(simulated, load, monkeypatch):
    async with load() as engine:

        class Endless:
            finished = True
            outputs = ()

            def __aiter__(self):
                return self

            async def __anext__(self):
                raise StopAsyncIteration

        monkeypatch.setattr(simulated.made[-1], "generate_async", lambda *args, **kwargs: Endless())
        with pytest.raises(PluginError, match="without a finish reason"):
            await engine.generate([5, 6])


async def test_an_executor_that_is_gone_is_told_by_health(simulated, load):
    async with load() as engine:
        await engine.health()
        simulated.made[-1].shutdown()
        with pytest.raises(EngineDied):
            await engine.health()


async def test_requests_fail_when_a_process_of_the_executor_ends(simulated, load, monkeypatch):
    # TensorRT-LLM itself would have them wait, and says that it is well.
    async with load() as engine:
        llm = simulated.made[-1]
        generate, seen, both = llm.generate_async, [], asyncio.Event()
        monkeypatch.setattr(llm.executor.core, "step", list)

        def watched(*args, **kwargs):
            seen.append(args)
            if len(seen) == 2:
                both.set()
            return generate(*args, **kwargs)

        monkeypatch.setattr(llm, "generate_async", watched)
        waiting = [
            asyncio.ensure_future(engine.generate([5, 6], max_tokens=9)),
            asyncio.ensure_future(engine.score([5, 6, 7])),
        ]
        await asyncio.wait_for(both.wait(), 20)
        llm._executor.mpi_futures[0].set_exception(RuntimeError("a device fell off"))
        for each in waiting:
            with pytest.raises(EngineDied, match="a device fell off"):
                await asyncio.wait_for(each, 20)
        for again in (engine.generate([5, 6], max_tokens=9), engine.score([5, 6]), engine.health()):
            with pytest.raises(EngineDied, match="a device fell off"):
                await again


async def test_streams_end_when_a_dead_executor_is_closed(simulated, storyteller, monkeypatch, tmp_path):
    from anyengine_trtllm import live as module

    monkeypatch.setattr(module, "_LAST_OUTPUTS", 0.1)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"r": 4}')
    backend = await plugin.load(*_loading(storyteller, tmp_path))
    # It takes the request, and says nothing ever after.
    core = simulated.made[-1].executor.core
    monkeypatch.setattr(core, "step", list)
    monkeypatch.setattr(core, "abort", lambda request_id: ())
    monkeypatch.setattr(core, "abort_all", list)
    stream = backend.stream(_request())
    reading = asyncio.ensure_future(anext(stream))
    await backend.close()
    delta = await reading
    assert (delta.token_ids, delta.finish.reason) == ([], "abort")


async def test_a_load_that_fails_says_why(load, monkeypatch, simulation):
    def fail(self, *args, **kwargs):
        raise RuntimeError("no device found")

    monkeypatch.setattr(simulation.SimulatedLLM, "__init__", fail)
    with pytest.raises(EngineStartupError, match="no device found"):
        async with load():
            pass


async def test_an_engine_that_is_not_wanted_is_stopped_whatever_is_cancelled(
    simulated, storyteller, monkeypatch, survives_cancellation
):
    def refuse(*_):
        raise Failure("not what was asked for")

    monkeypatch.setattr(backend_module, "TrtllmBackend", refuse)
    files = resolve_model(str(storyteller), builtin={})
    assert await survives_cancellation(backend_module, "stop", plugin.load(EngineConfig(model=str(storyteller)), files))


async def test_an_engine_that_comes_up_too_late_is_shut_down(simulated, load, monkeypatch, simulation):
    import threading

    going, ended = threading.Event(), threading.Event()
    begin, end = simulation.SimulatedLLM.__init__, simulation.SimulatedLLM.shutdown

    def slow(self, *args, **kwargs):
        going.wait(20)
        begin(self, *args, **kwargs)

    def watched(self):
        end(self)
        ended.set()

    monkeypatch.setattr(simulation.SimulatedLLM, "__init__", slow)
    monkeypatch.setattr(simulation.SimulatedLLM, "shutdown", watched)
    with pytest.raises(EngineStartupError, match="startup_timeout"):
        async with load(startup_timeout=0.2):
            pass
    going.set()
    assert await asyncio.to_thread(ended.wait, 20)
