"""What an engine reports about itself, in one set of units for all engines.

Unknown is not zero: what an engine does not report is None. Counters only ever grow while an engine lives.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from msgspec import Struct, field

__all__ = ["EngineStats", "Histogram", "KVCacheStats", "SpeculativeStats"]

#: Upper bounds in seconds, wide enough for a token on a fast GPU and a queue on a slow CPU.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram(Struct):
    """A distribution of durations.

    Attributes:
        bounds: ascending upper bounds of the buckets, in seconds; one more bucket counts what is above the last.
        counts: observations in each bucket, **not** cumulative; length ``len(bounds) + 1``.
        sum: of all observations, in seconds.
    """

    bounds: tuple[float, ...] = LATENCY_BUCKETS
    counts: list[int] = field(default_factory=list[int])
    sum: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration, ``times`` times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times


class KVCacheStats(Struct, frozen=True, kw_only=True):
    """The key-value cache.

    Attributes:
        capacity_tokens: tokens that fit.
        used_tokens: tokens that running requests hold, counted in whole blocks. What is kept only for reuse by
            later prefixes is not in use.
        usage: ``used_tokens / capacity_tokens``, 0 to 1.
        prefix_queries: prompt tokens looked up in the prefix cache.
        prefix_hits: prompt tokens found there.
    """

    capacity_tokens: int | None = None
    used_tokens: int | None = None
    usage: float | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None


class SpeculativeStats(Struct, frozen=True, kw_only=True):
    """Speculative decoding.

    Attributes:
        drafts: times that a draft was verified.
        drafted_tokens: tokens proposed.
        accepted_tokens: proposed tokens that were kept.
        accepted_per_position: how often the draft's first, second, … token was kept.
    """

    drafts: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    accepted_per_position: tuple[int, ...] | None = None


class EngineStats(Struct, frozen=True, kw_only=True):
    """A snapshot. ``None`` is "the engine does not say".

    Attributes:
        running: requests that the engine computes now.
        waiting: requests that the engine has accepted and not begun, or has preempted.
        queued: requests that wait in the SDK (see ``scheduling.max_queued_requests``).
        requests: finished requests, by finish reason.
        prompt_tokens: prompt tokens of all requests that began.
        generated_tokens: tokens that the engine generated; may exceed what callers saw (a token beyond a stop string).
        preemptions: times that a running request lost its cache and was computed again.
        kv_cache: see :class:`KVCacheStats`.
        speculative: see :class:`SpeculativeStats`; None without speculation.
        time_to_first_token: seconds from the engine's acceptance to the first token.
        inter_token_latency: seconds between tokens of a request.
        queue_time: seconds from the engine's acceptance to the start of computation.
        native: whatever else the engine reports, under its own names.
    """

    running: int | None = None
    waiting: int | None = None
    queued: int | None = None
    requests: dict[str, int] | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    preemptions: int | None = None
    kv_cache: KVCacheStats = KVCacheStats()
    speculative: SpeculativeStats | None = None
    time_to_first_token: Histogram | None = None
    inter_token_latency: Histogram | None = None
    queue_time: Histogram | None = None
    native: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_prometheus(self, **labels: str) -> str:
        """This snapshot in the Prometheus text format, under one naming scheme for all engines.

        Args:
            labels: added to every sample, such as ``engine="vllm"``.
        """
        from anyengine.prometheus import render  # noqa: PLC0415 only who exports metrics pays for the import

        return render(self, labels)
