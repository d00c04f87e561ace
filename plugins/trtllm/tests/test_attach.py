"""Attaching to a *simulated* ``trtllm-serve``; how servers are spoken to is tested in ``plugins/server``."""

import pytest
from anyengine import Engine, SamplingParams
from anyengine.errors import EngineStartupError, InvalidConfig, UnsupportedCapability, UnsupportedParameter
from anyengine_trtllm import plugin

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(simulated, storyteller, trtllm_serve):
    """The simulated server, and its address."""
    llm = simulated.module("tensorrt_llm").LLM(str(storyteller), sampler_type="TRTLLMSampler")
    try:
        async with trtllm_serve.serve(llm, simulated.classes, token="secret") as found:  # noqa: S106 a test's own
            yield found
    finally:
        llm.shutdown()


def _attach(storyteller, url, **fields):
    native = {"url": url, "token": "secret", **fields.pop("native", {})}
    return Engine.load(plugin, str(storyteller), native=native, **fields)


async def test_tokens_come_back_as_they_were_drawn(served, storyteller, simulated):
    made = len(simulated.made)
    async with Engine.load("reference", str(storyteller)) as engine:
        expected = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)
    async with _attach(storyteller, served[1]) as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24)
        await engine.health()
    assert (answer.token_ids, answer.finish_reason) == (expected.token_ids, expected.finish_reason)
    # Nothing was started beside the server.
    assert len(simulated.made) == made


async def test_only_addresses_of_the_contract_are_asked(served, storyteller, facts):
    server, url = served
    async with _attach(storyteller, url) as engine:
        await engine.generate(PROMPT, max_tokens=3)
        await engine.stats()
        await engine.health()
    assert set(server.asked) <= set(facts["endpoints"])
    assert {"POST /v1/completions", "GET /v1/models", "GET /health", "GET /metrics"} <= set(server.asked)


async def test_what_the_server_might_ignore_is_refused(served, storyteller):
    async with _attach(storyteller, served[1]) as engine:
        for field in ({"repetition_penalty": 1.2}, {"min_p": 0.1}, {"presence_penalty": 0.5}):
            with pytest.raises(UnsupportedParameter):
                await engine.generate(PROMPT, sampling=SamplingParams(**field))
        with pytest.raises(UnsupportedCapability):
            await engine.generate(PROMPT, logprobs=1)


async def test_what_only_a_start_could_set_is_refused(served, storyteller):
    with pytest.raises(UnsupportedParameter) as caught:
        async with _attach(storyteller, served[1], kv_cache={"capacity_tokens": 4096}):
            pass
    assert caught.value.field == "kv_cache.capacity_tokens"
    with pytest.raises(InvalidConfig) as caught:
        async with _attach(storyteller, served[1], native={"backend": "tensorrt"}):
            pass
    assert caught.value.field == "native.backend"


async def test_a_server_that_is_not_there_is_a_failed_start(simulated, storyteller):
    with pytest.raises(EngineStartupError, match=r"127\.0\.0\.1"):
        async with _attach(storyteller, "http://127.0.0.1:9"):
            pass
