"""The simulation has LMDeploy's interface, and its traps."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import logging
import threading
from contextlib import aclosing

import pytest

pytestmark = pytest.mark.usefixtures("importable")

PROMPT = [400, 500, 600]
GREEDY = {"top_k": 1, "temperature": 1.0}


@pytest.fixture
def messages():
    from lmdeploy import messages

    return messages


@pytest.fixture(params=["turbomind", "pytorch"])
def backend(request):
    return request.param


@pytest.fixture
def make(messages, storyteller):
    """``make(backend, fields of its configuration)``: an engine whose loop runs."""
    from lmdeploy.serve.core import AsyncEngine

    def start(backend, **fields):
        kind = messages.TurbomindEngineConfig if backend == "turbomind" else messages.PytorchEngineConfig
        engine = AsyncEngine(str(storyteller), backend=backend, backend_config=kind(**fields))
        assert engine.start_loop(asyncio.get_running_loop(), use_async_api=True)
        return engine

    return start


async def run(engine, session, prompt=PROMPT, *, stream=True, adapter=None, **fields):
    """All outputs of a request."""
    from lmdeploy.messages import GenerationConfig

    pool = engine.session_mgr.request_handle_pool
    handle = await pool.get()
    try:
        stream = handle.async_stream_infer(
            session,
            input_ids=prompt,
            gen_config=GenerationConfig(**{**GREEDY, **fields}),
            adapter_name=adapter,
            stream_output=stream,
        )
        return [output async for output in stream]
    finally:
        pool.put(handle)


def tokens(outputs):
    return [token for output in outputs for token in output.token_ids]


# -- the interface ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["GenerationConfig", "TurbomindEngineConfig", "PytorchEngineConfig", "SpeculativeConfig", "EngineOutput",
     "ScheduleMetrics", "RequestMetrics", "EngineEvent", "KVTransferConfig"],
)  # fmt: skip
def test_fields_and_their_order_are_those_of_the_facts(messages, facts, name):
    fields = [field.name for field in dataclasses.fields(getattr(messages, name))]
    assert fields == list(facts["classes"][name]["fields"])


@pytest.mark.parametrize("name", ["QuantPolicy", "ResponseType", "EventType"])
def test_members_are_those_of_the_facts(messages, facts, name):
    members = {member.name: member.value for member in getattr(messages, name)}
    assert list(members) == list(facts["enums"][name])
    assert all(members[key] == value for key, value in facts["enums"][name].items() if value is not None)


def test_no_class_has_a_method_or_parameter_of_its_own(facts):
    from lmdeploy.serve.core import AsyncEngine
    from lmdeploy.simulation.handles import RequestHandlePool
    from lmdeploy.simulation.pytorch import EngineInstance
    from lmdeploy.simulation.turbomind import TurboMindInstance

    for made in (AsyncEngine, RequestHandlePool, EngineInstance, TurboMindInstance):
        known = facts["classes"][made.__name__]["methods"]
        for name, method in inspect.getmembers(made, inspect.isfunction):
            if name.startswith("_"):
                continue
            is_async = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
            given = {
                "parameters": list(inspect.signature(method).parameters)[1:],
                "async": is_async,
            }
            wanted = {"parameters": list(known[name]["parameters"]), "async": known[name]["async"]}
            assert given == wanted, f"{made.__name__}.{name}"
    assert list(inspect.signature(AsyncEngine).parameters) == list(facts["classes"]["AsyncEngine"]["init"])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GenerationConfig", {"temperature": "hot"}),
        ("GenerationConfig", {"top_k": 2.5}),
        ("GenerationConfig", {"temprature": 1.0}),
        ("GenerationConfig", {"max_new_tokens": None}),
        ("GenerationConfig", {"output_logits": "some"}),
        ("TurbomindEngineConfig", {"tp": "2"}),
        ("TurbomindEngineConfig", {"block_size": 64}),
        ("PytorchEngineConfig", {"cache_block_seq_len": 64}),
        ("PytorchEngineConfig", {"adapters": ["a"]}),
        ("SpeculativeConfig", {}),
    ],
)
def test_wrong_names_and_types_are_refused(messages, name, fields):
    with pytest.raises(TypeError):
        getattr(messages, name)(**fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GenerationConfig", {"temperature": 2.5}),
        ("GenerationConfig", {"top_p": 1.5}),
        ("GenerationConfig", {"top_k": -1}),
        ("GenerationConfig", {"logprob_start_len": 0}),
        ("TurbomindEngineConfig", {"dtype": "float32"}),
        ("TurbomindEngineConfig", {"quant_policy": 16}),
        ("TurbomindEngineConfig", {"quant_policy": 5}),
        ("PytorchEngineConfig", {"cache_max_entry_count": 1.0}),
        ("PytorchEngineConfig", {"block_size": 8}),
        ("PytorchEngineConfig", {"block_size": 96}),
        ("SpeculativeConfig", {"method": "eagle", "dflash_block_size": 4}),
    ],
)
def test_wrong_values_are_refused(messages, name, fields):
    with pytest.raises((AssertionError, ValueError)):
        getattr(messages, name)(**fields)


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_schema", "json_schema": {"type": "objekt"}},
        {"type": "regex_schema", "regex_schema": "(a"},
        {"type": "structural_tag", "format": {"type": "grammar", "grammar": 'root ::= "a'}},
        {"type": "structural_tag", "format": {"type": "grammar", "grammar": 'start ::= "a"'}},
        {"type": "structural_tag", "format": {}},
        {"type": "poem"},
    ],
)
def test_formats_that_do_not_compile_are_told(wanted):
    from lmdeploy._guided_decoding import ensure_response_format_compilable

    with pytest.raises(ValueError, match=r"Unsupported|unsupported"):
        ensure_response_format_compilable(wanted)


# -- both backends ----------------------------------------------------------------------------------------------------


async def test_tokens_are_the_reference_engines_and_the_stop_token_is_among_them(make, backend, messages):
    engine = make(backend)
    long = tokens(await run(engine, 1, max_new_tokens=8))
    stopped = await run(engine, 2, max_new_tokens=8, stop_token_ids=[long[3]])
    assert tokens(stopped) == long[: long.index(long[3]) + 1]
    assert [output.status for output in stopped][-1] == messages.ResponseType.FINISH
    engine.close()


async def test_the_last_output_may_have_no_token(make, backend, messages):
    engine = make(backend)
    odd, even = await run(engine, 1, max_new_tokens=4), await run(engine, 2, max_new_tokens=4)
    assert (odd[-1].token_ids, odd[-1].status) == ([], messages.ResponseType.FINISH)
    assert even[-1].token_ids != []
    assert tokens(odd) == tokens(even)
    engine.close()


async def test_a_cancelled_request_ends_so(make, backend, messages):
    engine, statuses = make(backend), []
    pool = engine.session_mgr.request_handle_pool
    handle = await pool.get()
    async for output in handle.async_stream_infer(
        3,
        input_ids=PROMPT,
        gen_config=messages.GenerationConfig(**GREEDY, max_new_tokens=900),
        stream_output=True,
    ):
        statuses.append(output.status)
        await handle.async_cancel(3)
    assert (statuses[0], statuses[-1]) == (messages.ResponseType.SUCCESS, messages.ResponseType.CANCEL)
    pool.put(handle)
    assert (await engine.get_schedule_metrics()).active_seqs == 0
    engine.close()


@pytest.mark.parametrize("name", ["turbomind", "pytorch"])
async def test_what_a_cancelled_reader_sees(make, messages, name):
    engine = make(name)
    handle = await engine.session_mgr.request_handle_pool.get()
    config = messages.GenerationConfig(**GREEDY, max_new_tokens=900)
    begun = asyncio.Event()

    async def read():
        async for _ in handle.async_stream_infer(5, input_ids=PROMPT, gen_config=config, stream_output=True):
            begun.set()
        return "ended as if it were done"

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    if name == "turbomind":
        assert await task == "ended as if it were done"
    else:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await engine.get_schedule_metrics()).active_seqs == 0
    engine.close()


async def test_a_reader_that_leaves_ends_its_request(make, backend, messages):
    engine = make(backend)
    handle = await engine.session_mgr.request_handle_pool.get()
    config = messages.GenerationConfig(**GREEDY, max_new_tokens=900)
    async with aclosing(handle.async_stream_infer(5, input_ids=PROMPT, gen_config=config, stream_output=True)) as all_:
        await anext(all_)
    assert (await engine.get_schedule_metrics()).active_seqs == 0
    engine.close()


async def test_a_handle_serves_one_request(make, backend, messages):
    from lmdeploy.simulation.facts import SimulationError

    engine = make(backend)
    handle = await engine.session_mgr.request_handle_pool.get()
    config = messages.GenerationConfig(**GREEDY, max_new_tokens=900)
    async with aclosing(handle.async_stream_infer(1, input_ids=PROMPT, gen_config=config, stream_output=True)) as all_:
        await anext(all_)
        with pytest.raises(SimulationError, match="two requests"):
            await anext(handle.async_stream_infer(2, input_ids=PROMPT, gen_config=config))
    engine.close()


async def test_whoever_finds_no_handle_waits(make, backend, messages):
    engine = make(backend, max_batch_size=1)
    first, second = await asyncio.gather(run(engine, 1, max_new_tokens=3), run(engine, 2, max_new_tokens=3))
    assert tokens(first) == tokens(second)
    engine.close()


async def test_a_prompt_that_is_too_long_is_told(make, backend, messages):
    engine = make(backend, session_len=16)
    (only,) = await run(engine, 1, prompt=[400] * 17)
    assert only.status == messages.ResponseType.INPUT_LENGTH_ERROR
    engine.close()


async def test_more_tokens_than_fit_are_cut_off(make, backend):
    engine = make(backend, session_len=16)
    assert len(tokens(await run(engine, 1, max_new_tokens=500))) == 13
    engine.close()


async def test_health_is_told(make, backend):
    engine = make(backend)
    assert (await engine.health_probe(5.0))["status"] == "healthy"
    engine.close()
    assert (await engine.health_probe(5.0))["status"] == "unhealthy"


async def test_ordered_failures_come(make, backend, messages):
    engine = make(backend)
    engine.engine.failures.append(messages.ResponseType.OUT_OF_MEMORY)
    assert [output.status.name for output in await run(engine, 1)] == ["OUT_OF_MEMORY"]
    assert len(tokens(await run(engine, 2, max_new_tokens=1))) == 1
    engine.close()


# -- TurboMind --------------------------------------------------------------------------------------------------------


async def test_turbomind_drops_a_format_that_does_not_compile(make, messages, caplog):
    engine = make("turbomind")
    config = messages.GenerationConfig(**GREEDY, max_new_tokens=2, response_format={"type": "poem"})
    handle = await engine.session_mgr.request_handle_pool.get()
    with caplog.at_level(logging.WARNING, "lmdeploy"):
        outputs = [output async for output in handle.async_stream_infer(1, PROMPT, gen_config=config)]
    assert (len(tokens(outputs)), config.response_format) == (2, None)
    assert "guided decoding is off" in caplog.text
    engine.close()


async def test_turbomind_log_probabilities_are_of_what_is_left(make):
    engine = make("turbomind")
    greedy = await run(engine, 1, max_new_tokens=3, logprobs=4)
    assert [list(entry.values()) for output in greedy for entry in output.logprobs] == [[0.0]] * 3
    assert all(output.logprobs is None for output in await run(engine, 2, max_new_tokens=3, logprobs=0))
    engine.close()


async def test_turbomind_logits_are_of_all_tokens_so_far(make):
    engine = make("turbomind")
    last = (await run(engine, 2, max_new_tokens=3, output_logits="generation"))[-1]
    assert last.logits.shape == (3, 4096)
    everything = (await run(engine, 4, max_new_tokens=3, output_logits="all"))[-1]
    assert everything.logits.shape == (len(PROMPT) + 3 - 1, 4096)
    assert (everything.logits[-3:] == last.logits).all()
    engine.close()


async def test_turbomind_has_no_logits_of_what_was_cached(make):
    engine = make("turbomind", enable_prefix_caching=True, cache_block_seq_len=16)
    prompt = [400] * 40
    await run(engine, 2, prompt, max_new_tokens=1)
    last = (await run(engine, 4, prompt, max_new_tokens=1, output_logits="all"))[-1]
    assert last.req_metrics.cached_tokens == 32
    assert [bool(row != row) for row in last.logits[:, 0]] == [True] * 32 + [False] * 8  # noqa: PLR0124 not a number
    engine.close()


async def test_turbomind_without_a_seed_draws_the_same(make):
    engine = make("turbomind")
    drawn = [tokens(await run(engine, n, max_new_tokens=12, top_k=0, temperature=1.5)) for n in (1, 2)]
    assert drawn[0] == drawn[1]
    engine.close()


# -- PyTorch ----------------------------------------------------------------------------------------------------------


async def test_pytorch_ignore_eos_bans_every_stop_token(make, messages):
    engine = make("pytorch")
    stop = tokens(await run(engine, 1, max_new_tokens=1))[0]
    banned: list[int] = [1]
    config = messages.GenerationConfig(
        **GREEDY, max_new_tokens=4, ignore_eos=True, stop_token_ids=[stop], bad_token_ids=banned
    )
    handle = await engine.session_mgr.request_handle_pool.get()
    outputs = [output async for output in handle.async_stream_infer(2, PROMPT, gen_config=config)]
    assert len(tokens(outputs)) == 4
    assert stop not in tokens(outputs)
    assert banned == [1, stop]
    engine.close()


async def test_pytorch_log_probabilities_need_a_mode(make):
    silent, telling = make("pytorch"), make("pytorch", logprobs_mode="raw_logprobs")
    assert all(output.logprobs is None for output in await run(silent, 1, max_new_tokens=2, logprobs=3))
    entries = [entry for output in await run(telling, 2, max_new_tokens=2, logprobs=3) for entry in output.logprobs]
    assert [len(entry) for entry in entries] == [3, 3]
    # And 0 of generated tokens is none, not the sampled one.
    assert all(output.logprobs is None for output in await run(telling, 4, max_new_tokens=2, logprobs=0))
    silent.close()
    telling.close()


async def test_pytorch_scores_a_prompt(make, messages):
    engine = make("pytorch", logprobs_mode="raw_logprobs")
    outputs = await run(engine, 1, [400, 500, 600, 700], max_new_tokens=0, logprobs=0, logprob_start_len=0)
    assert [output.status for output in outputs] == [messages.ResponseType.FINISH]
    assert [list(entry) for entry in outputs[0].logprobs] == [[500], [600], [700]]
    engine.close()


async def test_pytorch_ends_what_is_prefilled_with_a_score(make, monkeypatch):
    engine = make("pytorch", logprobs_mode="raw_logprobs")
    core, going, stepping = engine.engine.executor.core, threading.Event(), threading.Event()
    step = core.step

    def held():
        stepping.set()
        going.wait(20)
        return step()

    monkeypatch.setattr(core, "step", held)
    first = asyncio.create_task(run(engine, 1, max_new_tokens=5))
    await asyncio.to_thread(stepping.wait, 20)
    # Both come while a step is under way, so they begin in the next one.
    score = asyncio.create_task(run(engine, 2, max_new_tokens=0, logprobs=0, logprob_start_len=0))
    beside = asyncio.create_task(run(engine, 3, max_new_tokens=5))
    while len(engine.engine.live) < 3:  # noqa: ASYNC110 the simulation has no event to wait for
        await asyncio.sleep(0)
    going.set()
    assert len(tokens(await first)) == 5
    assert len((await score)[0].logprobs) == 2
    assert tokens(await beside) == [0]
    engine.close()


async def test_pytorch_sleeps_and_wakes(make):
    engine = make("pytorch")
    running = asyncio.create_task(run(engine, 1, max_new_tokens=900))
    while not engine.engine.live:  # noqa: ASYNC110 the simulation has no event to wait for
        await asyncio.sleep(0)
    await engine.sleep()
    assert (await running)[-1].status.name == "CANCEL"
    assert engine.is_sleeping
    assert (await engine.health_probe(5.0))["status"] == "sleeping"
    assert [output.status.name for output in await run(engine, 2)] == ["CANCEL"]
    engine.wakeup()
    assert (await engine.health_probe(5.0))["status"] == "healthy"
    assert len(tokens(await run(engine, 3, max_new_tokens=2))) == 2
    engine.close()


async def test_turbomind_cannot_sleep(make):
    engine = make("turbomind")
    with pytest.raises(AttributeError):
        await engine.sleep()
    engine.close()


async def test_pytorch_looks_at_32_bits_of_a_seed(make):
    engine = make("pytorch")
    sampling = {"max_new_tokens": 12, "top_k": 0, "temperature": 1.5}
    drawn = [tokens(await run(engine, n, random_seed=seed, **sampling)) for n, seed in ((1, 7), (2, 7 + 2**32))]
    assert drawn[0] == drawn[1]
    assert drawn[0] != tokens(await run(engine, 3, random_seed=8, **sampling))
    engine.close()


async def test_pytorch_drops_min_new_tokens_above_the_most(make, caplog):
    engine = make("pytorch")
    stop = tokens(await run(engine, 1, max_new_tokens=1))[0]
    with caplog.at_level(logging.WARNING, "lmdeploy"):
        assert tokens(await run(engine, 2, max_new_tokens=3, min_new_tokens=4, stop_token_ids=[stop])) == [stop]
    assert "min_new_tokens" in caplog.text
    engine.close()


async def test_pytorch_processors_see_a_padded_row_and_change_the_logits(make):
    engine, seen = make("pytorch"), []

    def only_7(ids, logits):
        seen.append(ids.tolist())
        changed = logits.clone()
        changed[:] = -float("inf")
        changed[7] = 0.0
        return changed

    prompt = [400, 500, 600, 700]
    assert tokens(await run(engine, 1, prompt, max_new_tokens=3, logits_processors=[only_7])) == [7, 7, 7]
    assert seen == [[0, *prompt], [0, 0, *prompt, 7], [*prompt, 7, 7]]
    engine.close()


async def test_pytorch_dies_of_a_format_that_does_not_compile(make, messages):
    engine = make("pytorch")
    with pytest.raises(ValueError, match="poem"):
        await run(engine, 1, response_format={"type": "poem"})
    assert [output.status.name for output in await run(engine, 2)] == ["ENGINE_STOP_ERROR"]
    assert (await engine.health_probe(5.0))["status"] == "unhealthy"
    engine.close()


async def test_pytorch_says_how_many_blocks_it_made(make):
    engine = make("pytorch", num_gpu_blocks=18, block_size=16)
    assert engine.backend_config.num_gpu_blocks == 18
    # One is kept back, and one more is left out of the context.
    assert engine.engine.max_session_len == 256
    assert make("pytorch").backend_config.num_gpu_blocks == 513


async def test_pytorch_changes_what_it_has_no_room_or_kernel_for(messages, storyteller, caplog):
    from lmdeploy.simulation.cache import make_cache_config

    facts = {**_facts(storyteller), "sliding_window": 64, "head_dim": 512}
    config = messages.PytorchEngineConfig(max_batch_size=8, enable_prefix_caching=True, max_prefill_token_num=9_174_000)
    with caplog.at_level(logging.WARNING, "lmdeploy"):
        made = make_cache_config(config, facts)
    assert (made.block_size, made.enable_prefix_caching) == (32, False)
    assert made.max_prefill_token_num == 4_587_000
    assert len(caplog.records) == 3
    with pytest.raises(RuntimeError, match="gpu memory"):
        make_cache_config(messages.PytorchEngineConfig(max_batch_size=8, max_prefill_token_num=10**8), facts)


def _facts(folder):
    return json.loads((folder / "config.json").read_bytes())
