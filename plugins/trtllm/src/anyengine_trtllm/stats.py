"""Counting what TensorRT-LLM reports of each of its iterations, and what this package sees go by."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyengine.stats import EngineStats, Histogram, KVCacheStats, SpeculativeStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.backend import TokenDelta

__all__ = ["Recorder", "Timer"]


class Timer:
    """When the tokens of one request came."""

    __slots__ = ("_accepted", "_last", "_recorder")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._accepted = monotonic()
        self._last: float | None = None

    def saw(self, delta: TokenDelta, *, prompt_tokens: int, timed: bool) -> None:
        """Count a delta.

        Args:
            delta: what was read.
            prompt_tokens: of the request.
            timed: whether tokens come one by one; a result that comes whole says nothing of when they did.
        """
        recorder, count = self._recorder, len(delta.token_ids)
        if count:
            now = monotonic()
            recorder.generated_tokens += count
            if self._last is None:
                recorder.prompt_tokens += prompt_tokens
                if timed:
                    recorder.first_token.observe(now - self._accepted)
                count -= 1
            if count and timed and self._last is not None:
                recorder.between_tokens.observe((now - self._last) / count, count)
            self._last = now
        if delta.finish is not None:
            recorder.requests[delta.finish.reason] += 1


class Recorder:
    """Adds up iteration statistics; on the event loop.

    What TensorRT-LLM does not report (finished requests, tokens, latencies) is counted where its outputs are read.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self._latest: Mapping[str, Any] | None = None
        self._drafted = 0
        self._accepted = 0
        self._events: Counter[str] = Counter()
        self._before = (0, 0)

    def start(self, iteration: Mapping[str, Any]) -> None:
        """Count from here: what the engine looked up in its cache until then was nobody's request."""
        self._latest = iteration
        cache = iteration["kvCacheStats"]
        self._before = int(cache["reusedBlocks"]), int(cache["missedBlocks"])

    def record(self, iteration: Mapping[str, Any]) -> None:
        """Take in one iteration."""
        self._latest = iteration
        drafts = iteration.get("specDecodingStats")
        if drafts:
            self._drafted += drafts["numDraftTokens"]
            self._accepted += drafts["numAcceptedTokens"]

    def record_event(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the key-value cache."""
        self._events[str(event.get("data", {}).get("type", "unknown"))] += 1

    def snapshot(self, *, live: int, reported: bool, speculative: bool, prefix_caching: bool) -> EngineStats:
        """Everything so far.

        Args:
            reported: whether the engine reports its iterations.
            live: requests that have not ended: all of them came through this package.
            speculative: whether tokens are drafted at all.
            prefix_caching: whether prefixes are looked up at all.
        """
        latest = self._latest or {}
        # The last iteration may have been reported before requests came, or went: what it did not have waits.
        running = min(int(latest.get("numActiveRequests", 0)), live) if reported else None
        return EngineStats(
            running=running,
            waiting=None if running is None else live - running,
            requests=dict(self.requests),
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            kv_cache=_kv_cache(latest.get("kvCacheStats"), self._before, live=live, prefix_caching=prefix_caching),
            speculative=SpeculativeStats(drafted_tokens=self._drafted, accepted_tokens=self._accepted)
            if speculative
            else None,
            time_to_first_token=_copy(self.first_token),
            inter_token_latency=_copy(self.between_tokens),
            native=self._native(latest),
        )

    def _native(self, latest: Mapping[str, Any]) -> dict[str, Any]:
        """What has no field of its own, under TensorRT-LLM's names."""
        known = ("iter", "iterLatencyMS", "gpuMemUsage", "cpuMemUsage", "pinnedMemUsage", "inflightBatchingStats")
        native: dict[str, Any] = {name: latest[name] for name in known if latest.get(name) is not None}
        if self._events:
            native["kv_cache_events"] = dict(self._events)
        return native


def _kv_cache(
    seen: Mapping[str, Any] | None, before: tuple[int, int], *, live: int, prefix_caching: bool
) -> KVCacheStats:
    if not seen:
        return KVCacheStats()
    size, most = int(seen["tokensPerBlock"]), int(seen["maxNumBlocks"])
    # Without requests nothing is held; the last report is of an iteration that still had some.
    used = int(seen["usedNumBlocks"]) if live else 0
    hits, misses = int(seen["reusedBlocks"]) - before[0], int(seen["missedBlocks"]) - before[1]
    return KVCacheStats(
        capacity_tokens=most * size,
        used_tokens=used * size,
        usage=used / most if most else None,
        prefix_queries=(hits + misses) * size if prefix_caching else None,
        prefix_hits=hits * size if prefix_caching else None,
    )


def _copy(histogram: Histogram) -> Histogram:
    """A snapshot does not change afterwards."""
    return Histogram(bounds=histogram.bounds, counts=list(histogram.counts), sum=histogram.sum)
