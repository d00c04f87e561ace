"""LMDeploy itself, on a GPU, through a worker: what it computes, how it ends, and what it leaves."""

import asyncio
import json
import os
import random
import signal
import sys
import time

import pytest
from anyengine import Engine, EngineDied, EngineUnresponsive, SamplingParams, Structured
from anyengine.errors import OutOfMemory, UnsupportedCapability, UnsupportedParameter
from anyengine.quantization import compare, held_out_texts, scores_of
from anyengine.worker.supervisor import descendants

pytestmark = [
    pytest.mark.lmdeploy,
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time, there was a little"
PROMPTS = [PROMPT, "Tom and Lily", "One day, a big"]

#: Nats by which bf16 on a GPU may differ from the reference engine in float32, at one token.
ROUNDING = 0.25


@pytest.fixture(scope="module")
async def texts(storyteller):
    """Texts of the reference engine, as tokens, and the log-probabilities of their tokens."""
    async with Engine.load("reference", str(storyteller)) as engine:
        answers = await engine.generate(PROMPTS, sampling=GREEDY, max_tokens=48)
        ids = [answer.prompt_token_ids + answer.token_ids for answer in answers]
        return {tuple(each): (await engine.score(each)).logprobs for each in ids}


async def _drift(engine, texts):
    """Mean and largest difference in the log-probability of the same tokens."""
    off = []
    for ids, expected in texts.items():
        given = (await engine.score(list(ids))).logprobs
        off += [abs(one - other) for one, other in zip(given, expected, strict=True)]
    return sum(off) / len(off), max(off)


# -- what it computes -------------------------------------------------------------------------------------------------


async def test_it_generates_streams_chats_and_counts(real, storyteller):
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
        tokens = []
        async with engine.stream(PROMPT, sampling=GREEDY, max_tokens=32) as stream:
            async for chunk in stream:
                tokens += chunk.token_ids
        assert tokens == answer.token_ids
        messages = [{"role": "user", "content": "Tell me a story."}]
        said = await engine.generate(messages, sampling=GREEDY, max_tokens=8)
        assert said.usage.completion_tokens > 0
        stopped = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32, stop_token_ids=[answer.token_ids[4]])
        first = answer.token_ids.index(answer.token_ids[4])
        assert (stopped.token_ids, stopped.finish_reason) == (answer.token_ids[: first + 1], "stop")
        stats = await engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert sum(stats.requests.values()) == 4
        await engine.health()


async def test_log_probabilities_are_the_models_own(real, storyteller, texts):
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        mean, worst = await _drift(engine, texts)
        # Sampling parameters change nothing of them.
        sampling = SamplingParams(temperature=0.5, top_k=3, seed=1)
        answer = await engine.generate(PROMPT, sampling=sampling, max_tokens=16, logprobs=4, ignore_eos=True)
        again = (await engine.score(answer.prompt_token_ids + answer.token_ids)).logprobs[-16:]
    print(f"{real['native']}: mean {mean:.4f}, worst {worst:.4f} nats")  # noqa: T201 for -s
    assert mean <= 0.02
    assert worst <= ROUNDING
    assert [entry.logprob for entry in answer.logprobs] == pytest.approx(again, abs=ROUNDING)


async def test_constraints_hold(real, storyteller):
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Tom", "Lily"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        options = {"sampling": SamplingParams(seed=3), "max_tokens": 100}
        chosen = await engine.generate(PROMPT, structured=Structured(choice=["red", "blue"]), **options)
        matched = await engine.generate(PROMPT, structured=Structured(regex="[a-c]{3}-[0-9]{2}"), **options)
        filled = await engine.generate(PROMPT, structured=Structured(json_schema=schema), **options)
    assert chosen.text in {"red", "blue"}
    assert len(matched.text) == 6
    assert json.loads(filled.text)["name"] in {"Tom", "Lily"}


@pytest.mark.parametrize(("dtype", "mean"), [("int8", 0.05), ("int4", 0.5)], ids=["int8 cache", "int4 cache"])
async def test_a_quantised_cache_is_near_the_whole_one(real, storyteller, texts, dtype, mean):
    cache = real["kv_cache"] | {"dtype": dtype}
    async with Engine.load("lmdeploy", str(storyteller), **real | {"kv_cache": cache}) as engine:
        drift, worst = await _drift(engine, texts)
    print(f"{real['native']} {dtype}: mean {drift:.4f}, worst {worst:.4f} nats")  # noqa: T201 for -s
    assert 1e-4 < drift <= mean


async def test_graphs_compute_what_eager_execution_does(real_pytorch, storyteller):
    seen = []
    for execution in ("eager", "graph"):
        async with Engine.load("lmdeploy", str(storyteller), **real_pytorch | {"execution": execution}) as engine:
            answers = await engine.generate(PROMPTS, sampling=GREEDY, max_tokens=48, logprobs=0, ignore_eos=True)
            seen.append([entry.logprob for entry in answers[0].logprobs[:8]])
    assert seen[0] == pytest.approx(seen[1], abs=ROUNDING)


async def test_fp8_while_loading_is_for_widths_that_it_has_blocks_for(real_pytorch, storyteller, wide):
    with pytest.raises(UnsupportedParameter) as caught:
        await Engine.load("lmdeploy", str(storyteller), **real_pytorch | {"quantization": "fp8"})
    assert caught.value.field == "quantization"
    scores = []
    for quantization in (None, "fp8"):
        async with Engine.load("lmdeploy", str(wide), **real_pytorch | {"quantization": quantization}) as engine:
            scores.append((await engine.score(PROMPT * 8)).logprobs)
    off = [abs(one - other) for one, other in zip(*scores, strict=True)]
    print(f"fp8: mean {sum(off) / len(off):.4f}, worst {max(off):.4f} nats")  # noqa: T201 for -s
    assert 1e-4 < sum(off) / len(off) <= 0.15


@pytest.mark.usefixtures("two_devices")
async def test_tensor_parallel_over_two_devices(real, storyteller, texts):
    async with Engine.load("lmdeploy", str(storyteller), **real, parallel={"tensor": 2}) as engine:
        mean, _ = await _drift(engine, texts)
    assert mean <= 0.02


async def test_a_score_beside_requests_changes_none_of_them(real_pytorch, storyteller):
    """LMDeploy's engine in PyTorch ends what begins in a step that scores a text: this package keeps them apart."""
    async with Engine.load("lmdeploy", str(storyteller), **real_pytorch) as engine:
        alone = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=16, ignore_eos=True)
        for _ in range(20):
            scores = [asyncio.create_task(engine.score(PROMPT)) for _ in range(4)]
            beside = await engine.generate([PROMPT] * 8, sampling=GREEDY, max_tokens=16, ignore_eos=True)
            await asyncio.gather(*scores)
            assert [len(answer.token_ids) for answer in beside] == [16] * 8
            assert [answer.token_ids[0] for answer in beside] == [alone.token_ids[0]] * 8


# -- its ends ---------------------------------------------------------------------------------------------------------


async def test_an_abort_leaves_nothing(real, storyteller):
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        before = await engine.stats()
        for leave in (0, 1, 7):
            seen = 0
            async with engine.stream(PROMPT, ignore_eos=True, max_tokens=900) as stream:
                async for _ in stream:
                    seen += 1
                    if seen > leave:
                        break
        after = await engine.stats()
    assert (after.running, after.waiting, after.kv_cache.usage) == (0, 0, before.kv_cache.usage)
    assert after.requests["abort"] == 3


async def test_ten_thousand_requests_cancelled_at_random_leave_nothing(real, storyteller):
    chance = random.Random(7)  # noqa: S311 a schedule, not a secret
    limits = {"scheduling": {"max_num_seqs": 128, "max_queued_requests": 20000}}
    ends = {"whole": 0, "left": 0, "cancelled": 0}

    async def one(engine, number):
        length = chance.randint(2, 200)
        try:
            async with engine.stream([number % 4000 + 5] * length, ignore_eos=True, max_tokens=60) as stream:
                seen, leave = 0, chance.randint(0, 80)
                async for _ in stream:
                    seen += 1
                    if seen >= leave:
                        ends["left"] += 1
                        return
                ends["whole"] += 1
        except asyncio.CancelledError:
            ends["cancelled"] += 1
            raise

    async with Engine.load("lmdeploy", str(storyteller), **real | limits) as engine:
        before = await engine.stats()
        tasks = [asyncio.create_task(one(engine, number)) for number in range(10_000)]
        for task in chance.sample(tasks, 3000):
            asyncio.get_running_loop().call_later(chance.random() * 20, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        after = await engine.stats()
        print(real["native"], ends, after.requests)  # noqa: T201 for -s
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert min(ends.values()) > 100
        assert (after.running, after.waiting, after.queued) == (0, 0, before.queued)
        assert after.kv_cache.usage == before.kv_cache.usage
        assert len((await engine.generate(PROMPT, max_tokens=4, ignore_eos=True)).token_ids) == 4


# Seen at once, an end comes before the heartbeat misses one, which takes 6 s.
@pytest.mark.parametrize(
    ("signum", "kind", "seconds"),
    [(signal.SIGKILL, EngineDied, 5), (signal.SIGSTOP, EngineUnresponsive, 10)],
    ids=["killed", "stopped"],
)
async def test_a_fault_ends_every_request_in_time_and_leaves_nothing(
    real, storyteller, still_running, all_running, drained, named, gpu, signum, kind, seconds
):
    if "environment" not in real:
        pytest.skip("in this process there is no worker to die")
    level = gpu.used()
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        pids = [engine.pid, *descendants(engine.pid)]
        requests = [asyncio.create_task(drained(engine, max_tokens=900)) for _ in range(4)]
        await all_running(engine, requests)
        os.kill(named(pids, "--serve"), signum)
        began = time.monotonic()
        ends = await asyncio.gather(*requests, return_exceptions=True)
        assert time.monotonic() - began < seconds
        assert [type(end) for end in ends] == [kind] * len(requests)
        for call in (engine.stats(), engine.health()):
            with pytest.raises(kind):
                await call
    assert still_running(pids) == []
    assert await gpu.back_to(level)
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        assert len((await engine.generate(PROMPT, max_tokens=4, ignore_eos=True)).token_ids) == 4
    assert "lmdeploy" not in sys.modules


# -- memory of the device: nothing else may run on it -----------------------------------------------------------------


async def test_memory_is_free_after_a_close(real, storyteller, gpu):
    level = gpu.used()
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        await engine.generate(PROMPT, max_tokens=4)
        loaded = gpu.used()
    print(f"{real['native']} MiB: before {level}, loaded {loaded}")  # noqa: T201 for -s
    assert loaded > level + 500
    assert await gpu.back_to(level)


async def test_memory_is_free_while_asleep_and_answers_are_the_same_afterwards(real_pytorch, storyteller, gpu):
    level = gpu.used()
    share = {"kv_cache": {"gpu_memory_fraction": 0.2}}
    async with Engine.load("lmdeploy", str(storyteller), **real_pytorch | share) as engine:
        before = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
        loaded = gpu.used()
        await engine.sleep()
        asleep = gpu.used()
        await engine.wake()
        after = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
        print(f"MiB: before {level}, loaded {loaded}, asleep {asleep}, awake {gpu.used()}")  # noqa: T201 for -s
        assert after.token_ids == before.token_ids
        assert (await engine.stats()).running == 0
    assert loaded > level + 10_000
    assert asleep < level + 4_000
    assert await gpu.back_to(level)


@pytest.mark.parametrize("real", ["turbomind"], indirect=True)
async def test_turbomind_says_that_it_cannot_sleep(real, storyteller):
    async with Engine.load("lmdeploy", str(storyteller), **real) as engine:
        with pytest.raises(UnsupportedCapability):
            await engine.sleep()
        assert len((await engine.generate(PROMPT, max_tokens=4, ignore_eos=True)).token_ids) == 4


async def test_a_cache_that_does_not_fit_is_out_of_memory(real_pytorch, storyteller, gpu):
    level = gpu.used()
    with pytest.raises(OutOfMemory) as caught:
        await Engine.load("lmdeploy", str(storyteller), **real_pytorch | {"kv_cache": {"capacity_tokens": 200_000_000}})
    print(caught.value)  # noqa: T201 for -s
    assert await gpu.back_to(level)


# -- quantised checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def exact(storyteller):
    """The held-out texts scored by the reference engine, in float32."""
    async with Engine.load("reference", str(storyteller)) as engine:
        return await scores_of(engine, held_out_texts())


@pytest.mark.parametrize(("scheme", "most"), [("fp8-dynamic", 0.06), ("int4-awq", 0.35), ("int8-w8a8", 0.03)], ids=str)
async def test_what_lite_makes_runs_where_it_is_declared(
    real, exact, scheme, most, storyteller, wide, tmp_path, place_of
):
    source = wide if scheme == "int4-awq" else storyteller
    made = await Engine.quantize(
        "lmdeploy", model=str(source), scheme=scheme, output=tmp_path / "made", **place_of("lmdeploy")
    )
    # The engine in PyTorch computes AWQ in float16, which what is made of a model in bfloat16 is not in.
    options = real | {"dtype": "float16" if scheme == "int4-awq" else "auto"}
    if options["native"]["backend"] == "turbomind" and scheme != "int4-awq":
        with pytest.raises(UnsupportedParameter, match=r"native.backend='pytorch' can"):
            await Engine.load("lmdeploy", str(made), **options)
        return
    async with Engine.load("lmdeploy", str(made), **options) as engine:
        assert compare(exact, await scores_of(engine, held_out_texts())).mean_kl <= most
