"""Every configuration field that an engine may declare has the effect that it is said to have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams

from anyengine_conformance.at_once import begun, together
from anyengine_conformance.check import OWN, check, family, variant
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.families.knobs_requests import PAIR, cached, many_words
from anyengine_conformance.needs import greedy

if TYPE_CHECKING:
    from anyengine import Completion
    from anyengine.backend import BackendInfo

    from anyengine_conformance.context import Context

family("knobs", "Knobs")

UNCACHED = variant("no-prefix-caching", needs=("config.kv_cache.prefix_caching",), kv_cache={"prefix_caching": False})
BLOCKS = variant("blocks-of-32", needs=("config.kv_cache.block_size",), kv_cache={"block_size": 32})
CAPACITY = variant(
    "small-cache",
    needs=("config.kv_cache.capacity_tokens", "config.max_model_len"),
    max_model_len=512,
    kv_cache={"capacity_tokens": 4096},
)
CUT = variant(
    "small-steps",
    needs=(
        "config.scheduling.max_num_batched_tokens",
        "config.scheduling.max_num_seqs",
        "config.scheduling.chunked_prefill",
    ),
    scheduling={"max_num_batched_tokens": 16, "max_num_seqs": 4, "chunked_prefill": True},
)
SEEDED = variant("engine-seed", needs=("config.seed",), seed=7)
SAME_RUN = variant("determinism-run", needs=("determinism.run",), determinism="run")
INVARIANT = variant("batch-invariant", needs=("determinism.batch-invariant",), determinism="batch-invariant")


@check(
    "knobs.max-num-seqs-bounds-what-runs",
    must="Never more than `scheduling.max_num_seqs` sequences run at once, and `info` says that number.",
    advice="map scheduling.max_num_seqs, report it in BackendInfo.max_num_seqs, and the true number in stats.running",
    needs=("stats.running", "request.ignore_eos"),
    variant=PAIR,
    tier="extension",
)
async def max_num_seqs_bounds_what_runs(t: Context) -> None:
    t.equal(t.engine.info.max_num_seqs, 2, "engine.info.max_num_seqs")
    length = min(60, t.engine.info.max_model_len // 2)
    asked: dict[str, Any] = {"max_tokens": length, "ignore_eos": True}
    running: list[int] = []
    async with begun(t.generate(prompt, **asked) for prompt in (*PROMPTS, *PROMPTS)) as calls:
        while not all(call.done() for call in calls):
            running.append((await t.stats()).running or 0)
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls)
    t.expect(max(running) <= 2, expected="at most 2 running, of 8 requests at once", seen=max(running))
    t.expect(max(running) > 0, expected="stats.running above 0 while 8 requests are computed", seen=max(running))


@check(
    "knobs.batched-tokens-cut-prompts",
    must="A prompt longer than `max_num_batched_tokens` takes several steps, between which others get their tokens.",
    advice="map scheduling.max_num_batched_tokens and chunked_prefill; one step computes no more tokens than that",
    needs=("token_prompts", "request.ignore_eos"),
    variant=CUT,
    tier="extension",
)
async def batched_tokens_cut_prompts(t: Context) -> None:
    ids = await many_words(t, "cut", min(450, t.engine.info.max_model_len // 2))
    budget = t.engine.config.scheduling.max_num_batched_tokens or 1
    steps = len(ids) // budget
    got = 0
    async with t.open(max_tokens=t.engine.info.max_model_len // 2, ignore_eos=True) as stream:
        chunks = aiter(stream)
        await anext(chunks)
        async with begun([t.generate(ids, max_tokens=1)]) as (call,):
            while not call.done():
                got += len((await anext(chunks)).token_ids)
            await call
    least = steps * 3 // 4  # what is under way as it comes and goes is not seen
    t.expect(
        got >= least,
        expected=f"at least {least} tokens of another request while a prompt of {len(ids)} tokens is computed in steps "
        f"of {budget}",
        seen=got,
    )


@check(
    "knobs.prefix-caching-off-computes",
    must="With `kv_cache.prefix_caching` off nothing is found in the cache.",
    advice="map kv_cache.prefix_caching=False; several engines cache by default",
    needs=("token_prompts",),
    variant=UNCACHED,
    tier="extension",
)
async def prefix_caching_off_computes(t: Context) -> None:
    ids = await many_words(t, "off")
    t.equal([await cached(t, ids) for _ in range(3)], [0, 0, 0], "cached tokens of the same prompt three times")


@check(
    "knobs.block-size-is-the-caches-unit",
    must="With `kv_cache.block_size` the cache is used in whole blocks of that size.",
    advice="map kv_cache.block_size, and report used_tokens as blocks in use times block size",
    needs=("stats.kv_cache.used_tokens", "token_prompts", "request.ignore_eos"),
    variant=BLOCKS,
    tier="extension",
)
async def block_size_is_the_caches_unit(t: Context) -> None:
    size = t.engine.config.kv_cache.block_size or 1
    for number in range(4):
        ids = await many_words(t, f"blocks {number}", 32 * (number + 1) + 3)
        # So long that it is still there when its statistics are asked for.
        longest = t.engine.info.max_model_len - len(ids)
        async with t.open(ids, max_tokens=longest, ignore_eos=True) as stream:
            await anext(aiter(stream))
            used = (await t.settled(lambda stats: bool(stats.kv_cache.used_tokens), seconds=2.0)).kv_cache.used_tokens
        t.expect(
            used is not None and used % size == 0 and used >= len(ids),
            expected=f"kv_cache.used_tokens a multiple of {size}, and at least the {len(ids)} tokens of the prompt",
            seen=used,
        )
        await t.settled(lambda stats: not stats.kv_cache.used_tokens, seconds=2.0)


@check(
    "knobs.capacity-tokens-is-the-caches-size",
    must="With `kv_cache.capacity_tokens` the cache has room for that many tokens, in whole blocks.",
    advice="divide capacity_tokens by the block size for the engine's number of blocks; report the capacity in stats",
    needs=("stats.kv_cache.capacity_tokens",),
    variant=CAPACITY,
    tolerance="four blocks of at most 32 tokens",
    tier="extension",
)
async def capacity_tokens_is_the_caches_size(t: Context) -> None:
    asked = t.engine.config.kv_cache.capacity_tokens or 0
    await t.generate(max_tokens=2)
    capacity = (await t.stats()).kv_cache.capacity_tokens or 0
    t.expect(abs(capacity - asked) <= 128, expected=f"kv_cache.capacity_tokens {asked}, to 128", seen=capacity)


async def _loaded(t: Context, **config: Any) -> tuple[BackendInfo, Completion]:
    """What an engine says that was loaded so, and an answer of it."""

    async def load() -> tuple[BackendInfo, Completion]:
        async with t.load(**config) as engine:
            return engine.info, await engine.generate(t.prompt, max_tokens=12, sampling=greedy(engine.capabilities))

    return await t.once(f"knobs.loaded {config}", load)


def _as_dtype(name: str) -> None:
    @check(
        f"knobs.dtype-{name}",
        must=f"With dtype='{name}' the loaded engine says that its weights are in {name}, and it generates.",
        advice="map dtype, and report what the engine then has in BackendInfo.dtype, in the spelling of EngineConfig",
        needs=(f"dtype.{name}",),
        variant=OWN,
        deadline=120,
        tier="extension",
    )
    async def dtype(t: Context) -> None:
        info, answer = await _loaded(t, dtype=name)
        t.equal(info.dtype, name, "engine.info.dtype")
        t.expect(bool(answer.token_ids), expected="a completion", seen=answer)


for _name in ("float32", "bfloat16", "float16"):
    _as_dtype(_name)


@check(
    "knobs.device-and-execution-are-as-asked",
    must="With the device that it has, and execution='eager', an engine loads, says that device, and generates.",
    advice="map device and execution; 'eager' switches captured graphs off (vLLM: enforce_eager)",
    needs=("config.execution",),
    variant=OWN,
    deadline=180,
    tier="extension",
)
async def device_and_execution_are_as_asked(t: Context) -> None:
    plain, _ = await _loaded(t)
    devices = [name for name in plain.capabilities.devices if name in (plain.device or "")]
    asked = {"device": devices[0]} if devices else {}
    info, answer = await _loaded(t, execution="eager", **asked)
    t.equal(info.device, plain.device, "engine.info.device, asked for by its name")
    t.expect(bool(answer.token_ids) and bool(answer.text), expected="a completion with text", seen=answer)


@check(
    "knobs.engine-seed-leaves-requests-free",
    must="With an engine's `seed`, requests without a seed still vary among themselves.",
    advice="seed the engine once at load, never again for each request",
    needs=("sampling.temperature",),
    variant=SEEDED,
    tier="extension",
)
async def engine_seed_leaves_requests_free(t: Context) -> None:
    # At temperature 2, the probability that four texts of 32 tokens are equal is nothing that happens.
    answers = [await t.generate(max_tokens=32, sampling=SamplingParams(temperature=1.9)) for _ in range(4)]
    t.expect(
        len({tuple(answer.token_ids) for answer in answers}) > 1,
        expected="different completions of four calls without a seed",
        seen=f"four times {answers[0].token_ids}",
    )


async def _round(t: Context, number: int = 0) -> list[list[int]]:
    """The tokens of a few seeded requests, one after another."""
    return [
        (await t.generate(prompt, max_tokens=24, sampling=SamplingParams(seed=seed + number))).token_ids
        for seed, prompt in enumerate(PROMPTS)
    ]


@check(
    "knobs.determinism-run-repeats",
    must="With determinism='run' the same seeded requests in the same order give the same tokens.",
    advice="declare determinism only where the engine's kernels are deterministic, and switch that mode on",
    needs=("sampling.seed",),
    variant=SAME_RUN,
    tier="extension",
)
async def determinism_run_repeats(t: Context) -> None:
    await _round(t)  # afterwards the prefix cache is the same each time
    first = await _round(t)
    for _ in range(2):
        t.equal(await _round(t), first, "token ids of the same requests once more")


@check(
    "knobs.determinism-batch-invariant-holds",
    must="With determinism='batch-invariant' a seeded request gives the same tokens alone and in a batch.",
    advice="declare it only with kernels whose results do not depend on the batch (vLLM: VLLM_BATCH_INVARIANT=1)",
    needs=("sampling.seed",),
    variant=INVARIANT,
    tier="extension",
)
async def determinism_batch_invariant_holds(t: Context) -> None:
    alone = await _round(t)
    answers = await together(
        t.generate(prompt, max_tokens=24, sampling=SamplingParams(seed=seed))
        for seed, prompt in enumerate((*PROMPTS, *PROMPTS))
    )
    t.equal([answer.token_ids for answer in answers[: len(PROMPTS)]], alone, "token ids in a batch of eight")
