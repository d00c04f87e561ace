"""Attaching to vLLM's own server on a CPU: ``pytest plugins/server --vllm=ENVIRONMENT`` (or an interpreter's path)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from anyengine import Engine, SamplingParams
from anyengine.errors import EngineDied, InvalidConfig, UnsupportedParameter
from anyengine.worker.supervisor import descendants
from anyengine_server import ServerClient, ServerOptions, ServerProcess, free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"


@pytest.fixture(scope="session")
def interpreter(request: pytest.FixtureRequest) -> Path:
    """The one that has vLLM: of an environment of `anyengine env`, or a path."""
    name = str(request.config.getoption("--vllm"))
    if name == "here":
        import sys

        return Path(sys.executable)
    if Path(name).is_file():
        return Path(name)
    from anyengine.environments import find_environment

    return Path(find_environment(name).python)


@pytest.fixture(scope="module")
async def server(interpreter: Path, storyteller: Path):
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # What `vllm serve` runs; the command itself does not start from the distribution `vllm-cpu`.
    command = [
        str(interpreter), "-m", "vllm.entrypoints.openai.api_server", "--model", str(storyteller),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--served-model-name", "storyteller", "--api-key", "secret",
    ]  # fmt: skip
    process = await ServerProcess.start(command, name="vllm", environment=environment)
    client = ServerClient(ServerOptions(url=f"http://127.0.0.1:{port}", token="secret"))  # noqa: S106 no secret

    async def ready() -> bool:
        try:
            await client.get("/health", timeout=5)
        except EngineDied:
            return False
        return True

    try:
        await process.ready(ready)
        yield f"http://127.0.0.1:{port}", process
    finally:
        await client.aclose()
        await process.stop()


@pytest.fixture
async def engine(server: Any, storyteller: Path):
    native = {"url": server[0], "token": "secret"}
    async with Engine.load("vllm", str(storyteller), native=native) as loaded:
        yield loaded


@pytest.fixture
async def expected(storyteller: Path):
    async with Engine.load("reference", str(storyteller)) as loaded:
        yield loaded


async def test_it_is_what_it_says(engine: Engine, interpreter: Path):
    found = subprocess.run(  # noqa: ASYNC221 short
        [str(interpreter), "-c", "import vllm; print(vllm.__version__)"], capture_output=True, text=True, check=True
    )
    print("vLLM", found.stdout.strip())  # noqa: T201 which release was seen
    assert engine.info.max_model_len == 512
    assert engine.capabilities.logprobs == "raw-unless-structured"


async def test_greedy_tokens_are_the_reference_engines(engine: Engine, expected: Engine):
    for options in ({}, {"stop": ["the"]}, {"n": 2}, {"min_tokens": 10}):
        ours = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=24, **options)
        theirs = await expected.generate(PROMPT, sampling=GREEDY, max_tokens=24, **options)
        assert [one.token_ids for one in ours.choices] == [one.token_ids for one in theirs.choices]
        assert (ours.text, ours.finish_reason, ours.stop_reason) == (
            theirs.text,
            theirs.finish_reason,
            theirs.stop_reason,
        )
    async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=24) as stream:
        tokens = [token async for chunk in stream for token in chunk.token_ids]
    assert tokens == (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=24)).token_ids


async def test_stops_end_with_their_token(engine: Engine, expected: Engine):
    stop = (await expected.generate(PROMPT, sampling=GREEDY, max_tokens=9)).token_ids[8]
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=99, stop_token_ids=[stop])
    assert (answer.finish_reason, answer.stop_reason, answer.token_ids[-1]) == ("stop", stop, stop)


async def test_a_seed_repeats_and_each_parameter_has_its_effect(engine: Engine):
    async def tokens(**fields: Any) -> list[int]:
        return (await engine.generate(PROMPT, sampling=SamplingParams(**fields), max_tokens=12)).token_ids

    assert await tokens(seed=5) == await tokens(seed=5)
    assert len({tuple(await tokens(seed=seed)) for seed in range(6)}) > 1
    greedy = await tokens(temperature=0)
    assert await tokens(seed=1, top_k=1) == greedy
    assert await tokens(seed=1, min_p=1.0) == greedy
    assert await tokens(seed=1, top_p=1e-6) == greedy
    assert set(await tokens(seed=1, allowed_token_ids=[300, 301])) <= {300, 301}
    assert set(await tokens(temperature=0, logit_bias={300: 100.0})) == {300}
    assert await tokens(temperature=0, repetition_penalty=5.0) != greedy


async def test_log_probabilities_are_the_models(engine: Engine, expected: Engine):
    options: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 6, "logprobs": 3, "prompt_logprobs": 2}
    ours, theirs = await engine.generate(PROMPT, **options), await expected.generate(PROMPT, **options)
    pairs = zip(
        [*(ours.logprobs or []), *(ours.prompt_logprobs or [])],
        [*(theirs.logprobs or []), *(theirs.prompt_logprobs or [])],
        strict=True,
    )
    for one, other in pairs:
        if one is None or other is None:
            assert one is other
            continue
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert list(one.top) == list(other.top)
    ids = [*ours.prompt_token_ids, *ours.token_ids]
    scores, due = (await engine.score(ids)).entries, (await expected.score(ids)).entries
    assert [e.logprob for e in scores if e] == pytest.approx([e.logprob for e in due if e], abs=1e-3)


async def test_structures_hold(engine: Engine):
    assert (await engine.generate("?", structured={"choice": ["yes", "no"]}, max_tokens=9)).text in {"yes", "no"}
    assert (await engine.generate("?", structured={"regex": "[0-9]{3}"}, max_tokens=9)).text.isdecimal()


async def test_leaving_a_stream_ends_the_request_there(engine: Engine):
    for _ in range(20):  # on a busy machine the server may have come to the end before the first chunk is here
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=480, ignore_eos=True) as stream:
            await anext(aiter(stream))
            during = await engine.stats()
        if during.running:
            break
    assert during.running == 1
    async with asyncio.timeout(30):
        while (await engine.stats()).running:  # noqa: ASYNC110 another process, or the network, has to move
            await asyncio.sleep(0.05)


async def test_statistics_and_health(engine: Engine):
    before = await engine.stats()
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=7)
    after = await engine.stats()
    assert (after.generated_tokens or 0) - (before.generated_tokens or 0) == len(answer.token_ids)
    assert (after.prompt_tokens or 0) - (before.prompt_tokens or 0) == answer.usage.prompt_tokens
    assert after.kv_cache.capacity_tokens
    assert after.time_to_first_token is not None
    await engine.health()


async def test_refusals(engine: Engine, server: Any, storyteller: Path):
    for options in ({"sampling": SamplingParams(bad_words=["a"])}, {"priority": 1}):
        with pytest.raises(UnsupportedParameter):
            await engine.generate(PROMPT, max_tokens=3, **options)
    with pytest.raises(InvalidConfig, match="max_model_len"):
        async with Engine.load(
            "vllm", str(storyteller), native={"url": server[0], "token": "secret"}, max_model_len=1000
        ):
            pass


async def test_many_at_once(engine: Engine, expected: Engine):
    prompts = [f"Story number {number}" for number in range(32)]
    answers = await asyncio.gather(*(engine.generate(prompt, sampling=GREEDY, max_tokens=6) for prompt in prompts))
    assert answers[0].token_ids == (await expected.generate(prompts[0], sampling=GREEDY, max_tokens=6)).token_ids


async def test_a_server_that_is_killed_ends_its_streams(server: Any, storyteller: Path, all_running: Any, drained: Any):
    # The last test of this module: the server is gone afterwards.
    native = {"url": server[0], "token": "secret"}
    async with Engine.load("vllm", str(storyteller), native=native) as loaded:
        requests = [asyncio.create_task(drained(loaded, sampling=GREEDY, max_tokens=480)) for _ in range(4)]
        await all_running(loaded, requests)
        for pid in descendants(server[1].pid):
            with contextlib.suppress(ProcessLookupError):  # the guard, which has seen the first one end, was faster
                os.kill(pid, signal.SIGKILL)
        ends = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(end) for end in ends] == [EngineDied] * len(requests)
