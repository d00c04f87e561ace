"""Engines whose numbers do not add up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine.stats import EngineStats, Histogram, KVCacheStats
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyengine.backend import TokenDelta, TokenRequest


class ChangedStats(BrokenBackend):
    """Changes the statistics."""

    def change(self, stats: EngineStats) -> EngineStats:
        """What becomes of them."""
        return stats

    async def stats(self) -> EngineStats:
        return self.change(await self.inner.stats())


class ChangedCache(ChangedStats):
    """Changes those of the cache."""

    def cache(self, cache: KVCacheStats) -> KVCacheStats:
        """What becomes of them."""
        return cache

    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, kv_cache=self.cache(stats.kv_cache))


@fault("stats.prompt-tokens-add-up", "prompts are counted without their first token")
class PromptOneShort(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        finished = sum((stats.requests or {}).values())
        return replace(stats, prompt_tokens=(stats.prompt_tokens or 0) - finished)


@fault("stats.generated-tokens-add-up", "one token of each request is not counted")
class GeneratedOneShort(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        finished = sum((stats.requests or {}).values())
        return replace(stats, generated_tokens=max(0, (stats.generated_tokens or 0) - finished))


@fault("stats.generated-tokens-add-up", "every token is counted twice")
class GeneratedTwice(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, generated_tokens=2 * (stats.generated_tokens or 0))


@fault("stats.requests-are-counted", "every request is counted as stop")
class AllStop(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, requests={"stop": sum((stats.requests or {}).values())})


@fault("stats.running-while-it-runs", "running is always 0")
class NeverRunning(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, running=0)


@fault("stats.cache-in-use-while-it-runs", "the cache is never in use")
class CacheNeverUsed(ChangedCache):
    def cache(self, cache: KVCacheStats) -> KVCacheStats:
        return replace(cache, usage=0.0, used_tokens=0)


@fault("stats.cache-numbers-agree", "usage is in percent")
class Percent(ChangedCache):
    def cache(self, cache: KVCacheStats) -> KVCacheStats:
        return replace(cache, used_tokens=(cache.used_tokens or 0) * 100)


@fault("stats.prefix-hits-are-queried", "hits are counted in tokens, queries in requests")
class QueriesInRequests(ChangedCache):
    def cache(self, cache: KVCacheStats) -> KVCacheStats:
        return replace(cache, prefix_queries=(cache.prefix_queries or 0) // 100)


@fault("stats.counters-never-fall", "a counter is reset when it is read")
class ResetOnRead(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        last = getattr(self, "last", 0)
        self.last = stats.preemptions if stats.preemptions is not None else 0
        self.reads = getattr(self, "reads", 0) + 1
        return replace(stats, preemptions=self.last - last + self.reads % 2)


@fault("stats.gauges-are-plausible", "what is not known is -1")
class MinusOne(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, preemptions=-1)


@fault("stats.first-tokens-are-timed", "the time to the first token is observed for each token")
class EveryTokenTimed(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        return replace(stats, time_to_first_token=stats.inter_token_latency)


@fault("stats.histograms-are-whole", "counts of a histogram are cumulative")
class Cumulative(ChangedStats):
    def change(self, stats: EngineStats) -> EngineStats:
        histogram = stats.inter_token_latency
        if histogram is None:
            return stats
        total, counts = 0, list[int]()
        for count in histogram.counts:
            total += count
            counts.append(total)
        return replace(stats, inter_token_latency=Histogram(histogram.bounds, counts, histogram.sum))


@fault("stats.prometheus-is-readable", "labels are lost on the way to Prometheus")
class NoLabels(BrokenEngine):
    async def stats(self) -> Any:
        stats = await self.inner.stats()

        class Unlabelled:
            def __getattr__(self, name: str) -> Any:
                return getattr(stats, name)

            def to_prometheus(self, **_: str) -> str:
                return stats.to_prometheus()

        return Unlabelled()


@fault("stats.answered-while-busy", "statistics wait until the engine is idle")
class StatsWait(BrokenBackend):
    _NARROW = 64

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        self.slow = request.max_tokens == self._NARROW and request.ignore_eos
        return self.inner.stream(request)

    async def stats(self) -> EngineStats:
        found = await self.inner.stats()
        if getattr(self, "slow", False) and (found.running or 0) > 1:
            await asyncio.sleep(3)
        return found
