"""Statistics in the Prometheus text format, one naming scheme for all engines.

Names follow https://prometheus.io/docs/practices/naming/: a prefix, base units, ``_total`` for counters. What an engine
does not report is absent, never 0.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from anyengine.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from anyengine.stats import EngineStats, Histogram

__all__ = ["render"]

_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
#: Labels that our own metrics use.
_RESERVED = frozenset({"finish_reason", "le", "position"})


def render(stats: EngineStats, labels: Mapping[str, str]) -> str:
    """A snapshot as text.

    Args:
        stats: the snapshot.
        labels: added to every sample.

    Raises:
        InvalidRequest: a label's name is not allowed, or its value is no text.
    """
    for name, value in labels.items():
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] a caller may not check types
            raise InvalidRequest(f"labels: the value of {name!r} is {value!r}, not text", field="labels")
        if not _LABEL.fullmatch(name) or name in _RESERVED:
            raise InvalidRequest(
                f"labels: {name!r} is no label name: letters, digits and underscores, not beginning with a digit or "
                f"two underscores, and none of {', '.join(sorted(_RESERVED))}",
                field="labels",
            )
    registry = CollectorRegistry()
    registry.register(_Snapshot(stats, labels))
    return generate_latest(registry).decode()


class _Snapshot(Collector):
    def __init__(self, stats: EngineStats, labels: Mapping[str, str]) -> None:
        self._stats = stats
        self._names = tuple(labels)
        self._values = tuple(labels.values())

    def collect(self) -> Iterator[Metric]:
        stats, cache, speculative = self._stats, self._stats.kv_cache, self._stats.speculative
        yield from self._gauge("requests_running", "Requests that the engine computes now.", stats.running)
        yield from self._gauge("requests_waiting", "Requests that wait in the engine.", stats.waiting)
        yield from self._gauge("requests_queued", "Requests that wait before the engine.", stats.queued)
        yield from self._counters("requests_finished", "Finished requests.", "finish_reason", stats.requests)
        yield from self._counter("prompt_tokens", "Prompt tokens of requests that began.", stats.prompt_tokens)
        yield from self._counter("generated_tokens", "Tokens that the engine generated.", stats.generated_tokens)
        yield from self._counter("preemptions", "Requests that lost their cache and began again.", stats.preemptions)
        yield from self._gauge("kv_cache_usage_ratio", "Used share of the key-value cache, 0 to 1.", cache.usage)
        yield from self._gauge("kv_cache_capacity_tokens", "Tokens that fit in the cache.", cache.capacity_tokens)
        yield from self._gauge("kv_cache_used_tokens", "Tokens that requests hold in the cache.", cache.used_tokens)
        yield from self._counter("prefix_cache_queries_tokens", "Prompt tokens looked up.", cache.prefix_queries)
        yield from self._counter("prefix_cache_hits_tokens", "Prompt tokens found.", cache.prefix_hits)
        if speculative is not None:
            accepted = speculative.accepted_per_position
            positions = None if accepted is None else {str(i): count for i, count in enumerate(accepted)}
            yield from self._counter("speculative_drafts", "Drafts verified.", speculative.drafts)
            yield from self._counter("speculative_drafted_tokens", "Tokens proposed.", speculative.drafted_tokens)
            yield from self._counter("speculative_accepted_tokens", "Proposals kept.", speculative.accepted_tokens)
            yield from self._counters(
                "speculative_accepted_position_tokens", "Proposals kept, by place in the draft.", "position", positions
            )
        yield from self._histogram("time_to_first_token_seconds", "To the first token.", stats.time_to_first_token)
        yield from self._histogram("inter_token_latency_seconds", "Between tokens.", stats.inter_token_latency)
        yield from self._histogram("queue_time_seconds", "Until computation began.", stats.queue_time)

    def _gauge(self, name: str, text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            family = GaugeMetricFamily(f"anyengine_{name}", text, labels=self._names)
            family.add_metric(self._values, value)
            yield family

    def _counter(self, name: str, text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            family = CounterMetricFamily(f"anyengine_{name}", text, labels=self._names)
            family.add_metric(self._values, value)
            yield family

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, int] | None) -> Iterator[Metric]:
        if values is not None:
            family = CounterMetricFamily(f"anyengine_{name}", text, labels=(*self._names, label))
            for key, value in values.items():
                family.add_metric((*self._values, key), value)
            yield family

    def _histogram(self, name: str, text: str, histogram: Histogram | None) -> Iterator[Metric]:
        if histogram is not None:
            family = HistogramMetricFamily(f"anyengine_{name}", text, labels=self._names)
            bounds = [*map(str, histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(self._values, buckets, histogram.sum)
            yield family
