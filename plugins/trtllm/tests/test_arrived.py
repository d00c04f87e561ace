"""What came up, held against what was asked for, on the *simulated* TensorRT-LLM."""

from types import SimpleNamespace

import pytest
from anyengine import EngineConfig, SamplingParams
from anyengine.errors import InvalidConfig, OutOfMemory, UnsupportedParameter
from anyengine_trtllm.arrived import check_cache

GREEDY = SamplingParams(temperature=0)

pytestmark = pytest.mark.anyio


def _cache(blocks, size=32):
    return {"maxNumBlocks": blocks, "tokensPerBlock": size}


@pytest.mark.parametrize(
    ("fields", "length", "cache", "error", "named"),
    [
        # FlashMLA has blocks of its own.
        ({"kv_cache": {"block_size": 32}}, 64, _cache(9, 64), UnsupportedParameter, "kv_cache.block_size"),
        ({"kv_cache": {"capacity_tokens": 100}}, 100, _cache(3), OutOfMemory, "kv_cache.capacity_tokens"),
        ({"max_model_len": 97}, 97, _cache(3), InvalidConfig, "max_model_len"),
        ({"speculative": {"method": "ngram"}}, 97, _cache(3), InvalidConfig, "max_model_len"),
    ],
)
def test_what_came_out_smaller_is_refused_by_name(fields, length, cache, error, named):
    with pytest.raises(error) as caught:
        check_cache(EngineConfig(model="m", **fields), length, cache)
    assert caught.value.field == named
    assert caught.value.message.startswith(named)


@pytest.mark.parametrize(
    ("fields", "length", "held"),
    [
        ({"max_model_len": 96}, 96, 96),
        ({}, 97, 96),
        ({"kv_cache": {"capacity_tokens": 90, "block_size": 32}}, 90, 90),
    ],
)
def test_what_fits_is_taken_and_a_context_that_nobody_asked_for_is_as_long_as_the_cache(fields, length, held):
    assert check_cache(EngineConfig(model="m", **fields), length, _cache(3)) == held


@pytest.fixture
def little_memory(simulation, monkeypatch):
    """There is room for 512 tokens."""
    monkeypatch.setattr(simulation.executor, "_CACHE_TOKENS", 512)


@pytest.mark.usefixtures("little_memory")
async def test_a_context_that_the_cache_does_not_hold_is_no_engine(load, simulated):
    for fields, error in (
        ({"max_model_len": 1024}, InvalidConfig),
        ({"kv_cache": {"capacity_tokens": 900}}, OutOfMemory),
    ):
        with pytest.raises(error):
            async with load(**fields):
                pass
        assert simulated.made[-1]._check_health() is False


@pytest.mark.usefixtures("little_memory")
async def test_the_models_own_context_is_as_long_as_the_cache_and_reached(load):
    async with load() as engine:
        assert engine.info.max_model_len == 512
        answer = await engine.generate([5, 6], sampling=GREEDY, ignore_eos=True)
        assert (len(answer.token_ids), answer.finish_reason) == (510, "length")


async def test_the_token_of_the_check_is_in_no_statistics(load):
    async with load(native={"kv_cache_config": {"event_buffer_max_size": 16}}) as engine:
        found = await engine.stats()
        assert (found.running, found.prompt_tokens, found.generated_tokens) == (0, 0, 0)
        assert (found.kv_cache.prefix_queries, found.kv_cache.prefix_hits) == (0, 0)
        assert found.kv_cache.capacity_tokens == 32768
        assert "kv_cache_events" not in found.native
        assert sum(found.requests.values()) == 0


async def test_a_check_that_is_not_reported_in_time_is_none(simulated, load, simulation, monkeypatch):
    from anyengine_trtllm import reports

    monkeypatch.setattr(reports, "_FIRST", 0.1)
    monkeypatch.setattr(simulation.SimulatedLLM, "_iterations", lambda self: [])
    async with load(kv_cache={"capacity_tokens": 512}) as engine:
        assert engine.info.max_model_len == 512
        assert (await engine.stats()).kv_cache.capacity_tokens is None


async def test_statistics_go_on_while_requests_run(load):
    async with load() as engine, engine.stream([5, 6], ignore_eos=True, max_tokens=900) as stream:
        seen = []
        async for _ in stream:
            seen.append((await engine.stats()).native["iter"])
            if len(seen) == 3:
                break
        assert seen == sorted(set(seen))


async def test_what_is_reported_is_read_though_nobody_asks():
    import asyncio

    from anyengine_trtllm.reports import Reports
    from anyengine_trtllm.stats import Recorder

    read = asyncio.Event()

    class Reporting:
        _executor = SimpleNamespace(_iter_stats_result=None)

        async def get_stats_async(self, timeout):  # noqa: ASYNC109 as TensorRT-LLM has it
            yield {"iter": 7}
            read.set()

    recorder = Recorder()
    reports = Reports(Reporting(), recorder, events=False)
    reports.follow(lambda: 0)
    await asyncio.wait_for(read.wait(), 20)
    reports.close()
    found = recorder.snapshot(live=0, reported=True, speculative=False, prefix_caching=True)
    assert found.native["iter"] == 7


async def test_a_built_engine_does_not_say_that_nothing_was_cached(load):
    prompt = "There was a little girl who lived near the sea, and " * 6
    async with load(native={"backend": "tensorrt"}) as engine:
        for _ in range(2):
            answer = await engine.generate(prompt, sampling=GREEDY, max_tokens=2)
            assert answer.usage.cached_tokens is None
