"""Statistics: the counters add up with what was asked; what is not known is None."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams

from anyengine_conformance.at_once import begun
from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS

if TYPE_CHECKING:
    from anyengine import EngineStats

    from anyengine_conformance.context import Context

family("stats", "Statistics")

_COUNTERS = ("prompt_tokens", "generated_tokens", "preemptions")
#: An engine may have a step or two under way when a request ends, of as many tokens as it speculates.
_AHEAD = 2 * (1 + 64)
#: So many that counting each twice shows.
_MORE_THAN_AHEAD = 160
_HISTOGRAMS = ("time_to_first_token", "inter_token_latency", "queue_time")


async def _idle(t: Context) -> EngineStats:
    """Once nothing runs; what was aborted before may still be on its way out."""
    return await t.settled(lambda stats: not stats.running and not stats.waiting)


@check(
    "stats.prompt-tokens-add-up",
    must="`prompt_tokens` grows by the tokens of each prompt that begins.",
    advice="add the length of the prompt when its computation begins, also of what came from the prefix cache",
    needs=("stats.prompt_tokens",),
)
async def prompt_tokens_add_up(t: Context) -> None:
    before = (await _idle(t)).prompt_tokens or 0
    asked = sum([(await t.generate(prompt, max_tokens=2)).usage.prompt_tokens for prompt in PROMPTS])
    after = await t.settled(lambda stats: (stats.prompt_tokens or 0) >= before + asked)
    t.equal((after.prompt_tokens or 0) - before, asked, "growth of prompt_tokens")


@check(
    "stats.generated-tokens-add-up",
    must="`generated_tokens` grows by at least what callers saw, and not by much more than the engine runs ahead.",
    advice="count every token that the engine generated, once, in the step in which it is drawn",
    needs=("stats.generated_tokens",),
)
async def generated_tokens_add_up(t: Context) -> None:
    before = (await _idle(t)).generated_tokens or 0
    seen = (await t.generate(max_tokens=_MORE_THAN_AHEAD, **t.unending)).usage.completion_tokens
    after = await t.settled(lambda stats: (stats.generated_tokens or 0) >= before + seen)
    grown = (after.generated_tokens or 0) - before
    t.expect(
        seen <= grown <= seen + _AHEAD, expected=f"growth of generated_tokens by {seen} to {seen + _AHEAD}", seen=grown
    )


@check(
    "stats.requests-are-counted",
    must="`requests` counts each finished request once, under its finish reason.",
    advice="count when a request leaves the engine, also when it is aborted",
    needs=("stats.requests",),
)
async def requests_are_counted(t: Context) -> None:
    before = (await _idle(t)).requests or {}
    reasons = [(await t.generate(prompt, max_tokens=2)).finish_reason for prompt in PROMPTS]

    def grown(stats: EngineStats) -> dict[str, int]:
        now = stats.requests or {}
        return {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)}

    expected = {reason: reasons.count(reason) for reason in set(reasons)}
    after = await t.settled(lambda stats: grown(stats) == expected)
    t.equal(grown(after), expected, "growth of requests")


@check(
    "stats.running-while-it-runs",
    must="While a request generates, `running` counts it; once it has ended, it does not.",
    advice="report the requests that are being computed, from the engine's own scheduler",
    needs=("stats.running",),
)
async def running_while_it_runs(t: Context) -> None:
    t.equal((await _idle(t)).running, 0, "running, before")
    async with t.open(max_tokens=t.engine.info.max_model_len - 100, **t.unending) as stream:
        await anext(aiter(stream))
        during = await t.settled(lambda stats: stats.running == 1, seconds=2.0)
        t.equal(during.running, 1, "running, while one stream is read")
    t.equal((await _idle(t)).running, 0, "running, after")


@check(
    "stats.cache-in-use-while-it-runs",
    must="`kv_cache.usage` is above 0 while a request runs, 0 when none does, and never outside of 0 to 1.",
    advice="report what running requests hold; what is kept for later prefixes only is not in use",
    needs=("stats.kv_cache.usage",),
)
async def cache_in_use_while_it_runs(t: Context) -> None:
    idle = await t.settled(lambda stats: not stats.kv_cache.usage)
    t.equal(idle.kv_cache.usage, 0, "kv_cache.usage, before")
    async with t.open(max_tokens=t.engine.info.max_model_len - 100, **t.unending) as stream:
        await anext(aiter(stream))
        usage = (await t.settled(lambda stats: bool(stats.kv_cache.usage), seconds=2.0)).kv_cache.usage
        t.expect(usage is not None and 0 < usage <= 1, expected="kv_cache.usage above 0, at most 1", seen=usage)
    idle = await t.settled(lambda stats: not stats.kv_cache.usage)
    t.equal(idle.kv_cache.usage, 0, "kv_cache.usage, after")


@check(
    "stats.cache-numbers-agree",
    must="`kv_cache.used_tokens` and `usage` are one number: used_tokens / capacity_tokens.",
    advice="work usage out of the same snapshot as used_tokens",
    needs=("stats.kv_cache.used_tokens", "stats.kv_cache.capacity_tokens", "stats.kv_cache.usage"),
)
async def cache_numbers_agree(t: Context) -> None:
    async with t.open(max_tokens=t.engine.info.max_model_len - 100, **t.unending) as stream:
        await anext(aiter(stream))
        for _ in range(5):
            cache = (await t.stats()).kv_cache
            share = (cache.used_tokens or 0) / (cache.capacity_tokens or 1)
            off = abs(share - (cache.usage or 0))
            t.expect(off < 0.01, expected=f"usage near {share:.4f} (used_tokens / capacity_tokens)", seen=cache.usage)
            await asyncio.sleep(0.01)


@check(
    "stats.prefix-hits-are-queried",
    must="`kv_cache.prefix_hits` never passes `prefix_queries`, and both only grow.",
    advice="count in tokens, both, at the same place",
    needs=("stats.kv_cache.prefix_hits", "stats.kv_cache.prefix_queries"),
)
async def prefix_hits_are_queried(t: Context) -> None:
    first = (await t.stats()).kv_cache
    long = " ".join(PROMPTS)
    for _ in range(2):
        await t.generate(long, max_tokens=1)
    then = (await t.stats()).kv_cache
    t.expect((then.prefix_hits or 0) <= (then.prefix_queries or 0), expected="hits at most queries", seen=then)
    grown = (
        (then.prefix_queries or 0) - (first.prefix_queries or 0),
        (then.prefix_hits or 0) - (first.prefix_hits or 0),
    )
    t.expect(grown[0] >= 0 and grown[1] >= 0, expected="both grow", seen=f"growth of (queries, hits): {grown}")


@check(
    "stats.counters-never-fall",
    must="Counters only grow while an engine lives.",
    advice="keep counters for the engine's life; do not reset them when they are read",
)
async def counters_never_fall(t: Context) -> None:
    last: dict[str, Any] = {}
    for number in range(4):
        await t.generate(PROMPTS[number % len(PROMPTS)], max_tokens=2)
        now = _numbers(await t.stats())
        fallen = {name: (last[name], now[name]) for name in last if name not in now or now[name] < last[name]}
        t.expect(not fallen, expected="no counter below its last value, nor gone", seen=fallen)
        last = now


def _numbers(stats: EngineStats) -> dict[str, int]:
    found = {name: getattr(stats, name) for name in _COUNTERS}
    found |= {f"requests.{name}": count for name, count in (stats.requests or {}).items()}
    found |= {name: getattr(stats, name) and getattr(stats, name).count for name in _HISTOGRAMS}
    found |= {f"kv_cache.{name}": getattr(stats.kv_cache, name) for name in ("prefix_queries", "prefix_hits")}
    return {name: value for name, value in found.items() if value is not None}


@check(
    "stats.gauges-are-plausible",
    must="No gauge or counter is negative.",
    advice="report None for what is not known, never -1",
)
async def gauges_are_plausible(t: Context) -> None:
    await t.generate(max_tokens=2)
    stats = await t.stats()
    found = _numbers(stats) | {name: getattr(stats, name) for name in ("running", "waiting", "queued")}
    found |= {name: getattr(stats.kv_cache, name) for name in ("capacity_tokens", "used_tokens", "usage")}
    negative = {name: value for name, value in found.items() if value is not None and value < 0}
    t.expect(not negative, expected="nothing below 0", seen=negative)
    if stats.kv_cache.capacity_tokens is not None:
        t.expect(stats.kv_cache.capacity_tokens > 0, expected="a capacity above 0", seen=stats.kv_cache.capacity_tokens)


@check(
    "stats.first-tokens-are-timed",
    must="`time_to_first_token` has one observation for each request that gave a token.",
    advice="observe once a request, when its first token is drawn",
    needs=("stats.time_to_first_token",),
)
async def first_tokens_are_timed(t: Context) -> None:
    def count(stats: EngineStats) -> int:
        return 0 if stats.time_to_first_token is None else stats.time_to_first_token.count

    before = count(await _idle(t))
    for prompt in PROMPTS:
        await t.generate(prompt, max_tokens=5, **t.unending)
    after = await t.settled(lambda stats: count(stats) >= before + len(PROMPTS))
    t.equal(count(after) - before, len(PROMPTS), "growth of the number of observations")


@check(
    "stats.histograms-are-whole",
    must="A histogram has ascending bounds, one count more than bounds, and a sum that fits its counts.",
    advice="use anyengine.stats.Histogram, whose counts are not cumulative, or convert the engine's buckets to it",
)
async def histograms_are_whole(t: Context) -> None:
    await t.generate(max_tokens=4, n=2, sampling=SamplingParams())
    stats = await t.stats()
    for name in _HISTOGRAMS:
        histogram = getattr(stats, name)
        if histogram is None:
            continue
        t.equal(list(histogram.bounds), sorted(set(histogram.bounds)), f"bounds of {name}")
        t.equal(len(histogram.counts), len(histogram.bounds) + 1, f"number of counts of {name}")
        lowest = sum(c * bound for c, bound in zip(histogram.counts[1:], histogram.bounds, strict=True))
        good = min(histogram.counts) >= 0 and histogram.sum >= lowest * 0.999
        t.expect(good, expected=f"counts of {name} whose sum is at least {lowest}", seen=histogram)


@check(
    "stats.prometheus-is-readable",
    must="`to_prometheus` gives text that a Prometheus parser reads, with the labels on every sample.",
    advice="leave it to EngineStats; native values must be numbers or texts",
)
async def prometheus_is_readable(t: Context) -> None:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 for this one

    text = (await t.stats()).to_prometheus(engine=t.engine.name)
    samples = [sample for metric in text_string_to_metric_families(text) for sample in metric.samples]
    wrong = [sample.name for sample in samples if sample.labels.get("engine") != t.engine.name]
    t.expect(not wrong, expected=f"engine={t.engine.name!r} on every sample", seen=wrong)


@check(
    "stats.answered-while-busy",
    must="`stats` answers while requests run.",
    advice="take the snapshot without waiting for a step's end, or for the engine's lock",
)
async def answered_while_busy(t: Context) -> None:
    room = min(64, t.engine.info.max_model_len - 100)
    async with begun(t.generate(prompt, max_tokens=room, **t.unending) for prompt in PROMPTS) as running:
        try:
            while not all(request.done() for request in running):
                async with asyncio.timeout(5 * t.time_factor):
                    await t.stats()
                await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise t.fail(expected=f"an answer within {5 * t.time_factor:g} s", seen="none") from error
        await asyncio.gather(*running)
