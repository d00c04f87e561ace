"""Counting what LMDeploy's outputs say, and reading what its scheduler reports."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyengine.stats import EngineStats, Histogram, KVCacheStats, SpeculativeStats

if TYPE_CHECKING:
    from anyengine.backend import TokenDelta

__all__ = ["Recorder", "Timer"]


class Timer:
    """When the tokens of one request came.

    Args:
        recorder: where it is counted.
        prompt_tokens: of the request.
    """

    __slots__ = ("_accepted", "_last", "_prompt_tokens", "_recorder", "_started")

    def __init__(self, recorder: Recorder, prompt_tokens: int) -> None:
        self._recorder = recorder
        self._prompt_tokens = prompt_tokens
        self._accepted = monotonic()
        self._last: float | None = None
        self._started = False

    def saw(self, delta: TokenDelta, metrics: Any) -> None:
        """Count one output, with LMDeploy's own metrics of the request (None if it has none)."""
        recorder, count = self._recorder, len(delta.token_ids)
        if not self._started and metrics is not None:
            self._started = True
            recorder.began(self._prompt_tokens, metrics)
        if count:
            now = monotonic()
            recorder.generated_tokens += count
            if self._last is None:
                recorder.first_token.observe(now - self._accepted)
                count -= 1
            if count and self._last is not None:
                recorder.between_tokens.observe((now - self._last) / count, count)
            self._last = now
        if delta.finish is not None:
            recorder.requests[delta.finish.reason] += 1


class Recorder:
    """Adds up all requests; on the event loop.

    LMDeploy's own counters are kept by ``AsyncEngine.generate``, which this package does not go through.

    Args:
        queued: LMDeploy's event of a request that came in.
        scheduled: its event of a request that began.
        times_tokens: whether tokens always come as they are made. Where results may come whole, nobody knows when
            their tokens were made, and no time of a token is told at all.
    """

    def __init__(self, queued: Any, scheduled: Any, *, times_tokens: bool) -> None:
        self._times_tokens = times_tokens
        self._queued = queued
        self._scheduled = scheduled
        self.requests: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self._queue = Histogram()
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._drafts = 0
        self._drafted = 0
        self._accepted = 0
        self._per_position: list[int] = []

    def began(self, prompt_tokens: int, metrics: Any) -> None:
        """Count a request whose computation has begun."""
        self.prompt_tokens += prompt_tokens
        self._prefix_queries += prompt_tokens
        self._prefix_hits += int(metrics.cached_tokens)
        at = {event.type: event.timestamp for event in metrics.engine_events}
        if self._queued in at and self._scheduled in at:
            # Both by the same clock on the wall, which may be set back.
            self._queue.observe(max(at[self._scheduled] - at[self._queued], 0.0))

    def drafted(self, metrics: Any) -> None:
        """Count a verified draft, if the output is of one."""
        seen = metrics.spec_info if metrics is not None else None
        if not seen:
            return
        accepted = int(seen["num_accepted_tokens"])
        self._drafts += 1
        self._drafted += int(seen["num_draft_tokens"])
        self._accepted += accepted
        self._per_position.extend([0] * (accepted - len(self._per_position)))
        for position in range(accepted):
            self._per_position[position] += 1

    def snapshot(
        self,
        scheduler: Any,
        *,
        live: int,
        capacity_tokens: int | None,
        block_size: int,
        speculative: bool,
        prefix_caching: bool,
    ) -> EngineStats:
        """Everything so far.

        Args:
            scheduler: LMDeploy's ``ScheduleMetrics``.
            live: requests that have not ended: all of them came through this package.
            capacity_tokens: of the key-value cache; None where LMDeploy does not say.
            block_size: tokens in a block.
            speculative: whether tokens are drafted at all.
            prefix_caching: whether prefixes are looked up at all.
        """
        # The last report may be of a step that still had requests which have ended since.
        running = min(int(scheduler.active_seqs), live)
        usage = float(scheduler.cache_usage)
        used = None if capacity_tokens is None else round(usage * capacity_tokens / block_size) * block_size
        return EngineStats(
            running=running,
            waiting=live - running,
            requests=dict(self.requests),
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            kv_cache=KVCacheStats(
                capacity_tokens=capacity_tokens,
                used_tokens=used,
                usage=usage,
                prefix_queries=self._prefix_queries if prefix_caching else None,
                prefix_hits=self._prefix_hits if prefix_caching else None,
            ),
            speculative=SpeculativeStats(
                drafts=self._drafts,
                drafted_tokens=self._drafted,
                accepted_tokens=self._accepted,
                accepted_per_position=tuple(self._per_position),
            )
            if speculative
            else None,
            time_to_first_token=_copy(self.first_token) if self._times_tokens else None,
            inter_token_latency=_copy(self.between_tokens) if self._times_tokens else None,
            queue_time=_copy(self._queue),
            native={
                "scheduler_tick": int(scheduler.scheduler_tick),
                "prefix_cache_hit_rate": float(scheduler.prefix_cache_hit_rate),
            },
        )


def _copy(histogram: Histogram) -> Histogram:
    """A snapshot does not change afterwards."""
    return Histogram(bounds=histogram.bounds, counts=list(histogram.counts), sum=histogram.sum)
