"""Counting what vLLM reports of each of its steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

from anyengine.stats import EngineStats, Histogram, KVCacheStats, SpeculativeStats

__all__ = ["StatsRecorder", "make_stat_logger"]


class StatsRecorder:
    """Adds up the statistics of all steps; on the event loop that reads the engine's outputs.

    vLLM calls :meth:`record` through a stat logger with its ``SchedulerStats`` and ``IterationStats``; every number
    here comes from there, but aborts, which vLLM does not count.
    """

    def __init__(self) -> None:
        self._scheduler: dict[int, Any] = {}
        self._requests: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0})
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._drafts = 0
        self._drafted = 0
        self._accepted = 0
        self._accepted_per_position: list[int] = []
        self._first_token = Histogram()
        self._between_tokens = Histogram()
        self._queue = Histogram()

    @property
    def busy(self) -> bool:
        """Whether the last report had requests in it."""
        return any(seen.num_running_reqs or _waiting(seen) for seen in self._scheduler.values())

    def aborted(self, measured: Any | None = None) -> None:
        """Count a request that was ended from outside.

        Args:
            measured: its ``RequestStateStats``, if it has had an output. vLLM reports those of others when they end.
        """
        self._requests["abort"] += 1
        if measured is not None:
            self._queue.observe(max(measured.scheduled_ts - measured.queued_ts, 0.0))

    def record(self, scheduler: Any | None, iteration: Any | None, engine: int = 0) -> None:
        """Take in one step of one engine core (there are several with data parallelism)."""
        if scheduler is not None:
            self._scheduler[engine] = scheduler
            self._prefix_queries += scheduler.prefix_cache_stats.queries
            self._prefix_hits += scheduler.prefix_cache_stats.hits
            if scheduler.spec_decoding_stats is not None:
                self._record_drafts(scheduler.spec_decoding_stats)
        if iteration is not None:
            self._prompt_tokens += iteration.prompt_token_stats.total
            self._generated_tokens += iteration.num_generation_tokens
            self._preemptions += iteration.num_preempted_reqs
            for seconds in iteration.time_to_first_tokens_iter:
                self._first_token.observe(seconds)
            for seconds in iteration.inter_token_latencies_iter:
                self._between_tokens.observe(seconds)
            for finished in iteration.finished_requests:
                self._requests[str(finished.finish_reason)] += 1
                self._queue.observe(max(finished.queued_time, 0.0))

    def _record_drafts(self, drafts: Any) -> None:
        self._drafts += drafts.num_drafts
        self._drafted += drafts.num_draft_tokens
        self._accepted += drafts.num_accepted_tokens
        positions = drafts.num_accepted_tokens_per_pos
        known = self._accepted_per_position
        known.extend([0] * (len(positions) - len(known)))
        for position, count in enumerate(positions):
            known[position] += count

    def snapshot(
        self, *, capacity_tokens: int, block_size: int, speculative: bool, prefix_caching: bool
    ) -> EngineStats:
        """Everything so far.

        Args:
            capacity_tokens: of the key-value cache, all engine cores together.
            block_size: tokens in a block, to give what is in use in whole blocks.
            speculative: whether tokens are drafted at all.
            prefix_caching: whether prefixes are looked up at all.
        """
        cores = list(self._scheduler.values())
        usage = sum(seen.kv_cache_usage for seen in cores) / len(cores) if cores else 0.0
        return EngineStats(
            running=sum(seen.num_running_reqs for seen in cores),
            waiting=sum(map(_waiting, cores)),
            requests=dict(self._requests),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._preemptions,
            kv_cache=KVCacheStats(
                capacity_tokens=capacity_tokens,
                used_tokens=round(usage * capacity_tokens / block_size) * block_size,
                usage=usage,
                prefix_queries=self._prefix_queries if prefix_caching else None,
                prefix_hits=self._prefix_hits if prefix_caching else None,
            ),
            speculative=SpeculativeStats(
                drafts=self._drafts,
                drafted_tokens=self._drafted,
                accepted_tokens=self._accepted,
                accepted_per_position=tuple(self._accepted_per_position),
            )
            if speculative
            else None,
            time_to_first_token=_copy(self._first_token),
            inter_token_latency=_copy(self._between_tokens),
            queue_time=_copy(self._queue),
            native=self._native(cores),
        )

    def _native(self, cores: list[Any]) -> dict[str, Any]:
        """What has no field of its own, under vLLM's names."""
        adapters: Counter[str] = Counter()
        for seen in cores:
            adapters.update(seen.running_lora_adapters)
        skipped = sum(seen.num_skipped_waiting_reqs for seen in cores)
        return {"num_skipped_waiting_reqs": skipped, "running_lora_adapters": dict(adapters)}


def _waiting(seen: Any) -> int:
    return seen.num_waiting_reqs + seen.num_skipped_waiting_reqs


def _copy(histogram: Histogram) -> Histogram:
    """A snapshot does not change afterwards."""
    return Histogram(bounds=histogram.bounds, counts=list(histogram.counts), sum=histogram.sum)


def make_stat_logger(base: Any, recorder: StatsRecorder) -> Any:
    """A logger as ``AsyncLLM`` takes it, that hands everything to ``recorder``.

    Args:
        base: vLLM's ``PrometheusStatLogger``, which it adds to any others unless one of them is of that class.
        recorder: where it goes.
    """

    class RecordingStatLogger(base):
        """No metrics in the process's registry, and no work for them with every token."""

        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            del vllm_config, engine_indexes

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            del args  # of models with images
            recorder.record(scheduler_stats, iteration_stats, kwargs.get("engine_idx", 0))

        def log(self) -> None:
            """There is nothing to say."""

        def log_engine_initialized(self) -> None:
            """Nor here."""

        def record_sleep_state(self, *args: Any, **kwargs: Any) -> None:
            """Nor here."""

        def record_admission_rejection(self, reason: str) -> None:
            """Nor here: who is turned away is told so. vLLM's own counts it in metrics that this one has not."""

    return RecordingStatLogger
