"""What vLLM does on a GPU only."""

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack

import pytest
from anyengine import Engine, SamplingParams
from anyengine.errors import EngineDied, OutOfMemory, UnsupportedParameter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time, there was a little"


@pytest.fixture(scope="module")
async def texts(small, storyteller):
    """Answers in bf16 of an engine without anything special, and their scores."""
    async with Engine.load("vllm", str(storyteller), **small | {"dtype": "bfloat16"}) as engine:
        answers = await engine.generate([PROMPT, "Tom and Lily", "One day, a big"], sampling=GREEDY, max_tokens=48)
        ids = [answer.prompt_token_ids + answer.token_ids for answer in answers]
        return {tuple(each): (await engine.score(each)).logprobs for each in ids}


async def _drift(engine, texts):
    """Mean and largest difference in the log-probability of the same tokens."""
    off = []
    for ids, expected in texts.items():
        given = (await engine.score(list(ids))).logprobs
        off += [abs(one - other) for one, other in zip(given, expected, strict=True)]
    return sum(off) / len(off), max(off)


@pytest.mark.parametrize(
    ("changes", "mean"),
    [
        ({"execution": "graph"}, 0.02),
        ({"execution": "eager", "dtype": "float16"}, 0.05),
        ({"execution": "eager", "devices": (0,)}, 0.02),
        ({"execution": "eager", "quantization": "fp8"}, 0.15),
        ({"execution": "eager", "kv_cache": {"capacity_tokens": 8192, "dtype": "fp8"}}, 0.15),
    ],
    ids=["graphs", "float16", "devices", "fp8 weights", "fp8 cache"],
)
async def test_the_same_tokens_are_about_as_likely(small, storyteller, texts, changes, mean):
    async with Engine.load("vllm", str(storyteller), **small | {"dtype": "bfloat16"} | changes) as engine:
        drift, worst = await _drift(engine, texts)
        answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=16)
        print(f"{changes}: mean {drift:.4f}, worst {worst:.4f} nats; {answer.text!r}")  # noqa: T201 for -s
        assert engine.info.device != "cpu"
        assert engine.info.max_num_seqs in (256, 1024)  # what `vllm serve` runs at once, by the device's memory
    assert drift <= mean
    if "fp8" in str(changes):
        assert drift > 1e-4  # it was really quantised


async def test_a_checkpoint_in_compressed_tensors_is_loaded(small, storyteller, texts, tmp_path):
    await Engine.quantize("reference", model=str(storyteller), scheme="int8-w8a16", output=tmp_path / "int8")
    async with Engine.load("vllm", str(tmp_path / "int8"), **small | {"dtype": "bfloat16"}) as engine:
        drift, worst = await _drift(engine, texts)
    print(f"int8-w8a16: mean {drift:.4f}, worst {worst:.4f} nats")  # noqa: T201 for -s
    assert 1e-5 < drift <= 0.1


@pytest.mark.parametrize("model", ["storyteller", "smollm2"])  # 256 wide and 576: see invariance.py
async def test_batch_invariance_makes_an_answer_the_same_to_the_last_bit_in_any_company(small, request, model):
    folder = request.getfixturevalue(model)
    alike = {"sampling": GREEDY, "max_tokens": 48, "logprobs": 3, "ignore_eos": True}
    others = [[11 + 3 * number] * (1 + 5 * number) for number in range(63)]
    async with Engine.load(
        "vllm", str(folder), **small | {"dtype": "bfloat16"}, determinism="batch-invariant"
    ) as engine:
        alone = await engine.generate(PROMPT, **alike)
        for place in (0, 31, 63):
            batch = [*others[:place], PROMPT, *others[place:]]
            among = (await engine.generate(batch, **alike))[place]
            assert among.token_ids == alone.token_ids
            assert [entry.top for entry in among.logprobs] == [entry.top for entry in alone.logprobs]


async def test_a_run_repeats_itself_where_determinism_was_asked_for(small, storyteller):
    seen = []
    for _ in range(2):
        async with Engine.load(
            "vllm", str(storyteller), **small | {"dtype": "bfloat16"}, determinism="run", seed=3
        ) as engine:
            options = {"sampling": SamplingParams(seed=5), "max_tokens": 32, "logprobs": 0}
            answers = await engine.generate([PROMPT] * 8, **options)
            seen.append([([*a.token_ids], [e.logprob for e in a.logprobs]) for a in answers])
    assert seen[0] == seen[1]


async def test_adapters_in_float32_are_refused(small, storyteller, make_adapter):
    with pytest.raises(UnsupportedParameter) as caught:
        await Engine.load(
            "vllm", str(storyteller), **small | {"dtype": "float32"}, lora={"adapters": {"one": str(make_adapter(1))}}
        )
    assert caught.value.field == "lora"


async def test_an_engine_that_slept_answers_as_before(small, storyteller):
    async with Engine.load("vllm", str(storyteller), **small) as engine:
        before = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
        await engine.sleep()
        await engine.wake()
        after = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
        assert after.token_ids == before.token_ids
        assert (await engine.stats()).kv_cache.used_tokens == 0


async def test_ten_thousand_requests_cancelled_at_random_leave_nothing(small, storyteller):
    chance = random.Random(7)  # noqa: S311 a schedule, not a secret
    cache = {"kv_cache": {"capacity_tokens": 131072}, "scheduling": {"max_num_seqs": 256, "max_queued_requests": 20000}}
    ends = {"whole": 0, "left": 0, "cancelled": 0}

    async def one(engine, number):
        length = chance.randint(2, 200)
        try:
            async with engine.stream([number % 4000] * length, ignore_eos=True, max_tokens=60) as stream:
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

    async with Engine.load("vllm", str(storyteller), **small | cache) as engine:
        before = await engine.stats()
        tasks = [asyncio.create_task(one(engine, number)) for number in range(10_000)]
        for task in chance.sample(tasks, 3000):
            asyncio.get_running_loop().call_later(chance.random() * 20, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        after = await engine.stats()
        print(ends, after.requests)  # noqa: T201 for -s
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert min(ends.values()) > 100
        assert (after.running, after.waiting, after.queued) == (0, 0, before.queued)
        assert after.kv_cache.used_tokens == before.kv_cache.used_tokens == 0
        assert len((await engine.generate(PROMPT, max_tokens=4, ignore_eos=True)).token_ids) == 4


@pytest.mark.usefixtures("two_devices")
async def test_tensor_parallel_over_two_devices(small, storyteller, texts):
    async with Engine.load("vllm", str(storyteller), **small | {"dtype": "bfloat16"}, parallel={"tensor": 2}) as engine:
        drift, _ = await _drift(engine, texts)
    assert drift <= 0.02


# -- memory of the device: nothing else may run on it ----------------------------------------------------------


async def test_memory_is_free_after_a_close_a_kill_and_while_asleep(small, storyteller, gpu):
    level = gpu.used()
    cache = {"kv_cache": {"gpu_memory_fraction": 0.2}}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine.load("vllm", str(storyteller), **small | cache))
        loaded = gpu.used()
        assert loaded > level + 20_000  # a fifth of it
        await engine.sleep()
        asleep = gpu.used()
        assert asleep < level + 4_000
        await engine.wake()
        print(f"MiB: before {level}, loaded {loaded}, asleep {asleep}")  # noqa: T201 for -s
    assert await gpu.back_to(level)
    async with Engine.load("vllm", str(storyteller), **small | cache) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            await engine.generate(PROMPT)
    assert await gpu.back_to(level)


async def test_a_cache_that_does_not_fit_is_out_of_memory(small, storyteller, gpu):
    level = gpu.used()
    with pytest.raises(OutOfMemory) as caught:
        await Engine.load("vllm", str(storyteller), **small | {"kv_cache": {"capacity_tokens": 200_000_000}})
    print(caught.value)  # noqa: T201 for -s
    assert await gpu.back_to(level)
