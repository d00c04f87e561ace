"""vLLM's ``/metrics`` as statistics."""

from __future__ import annotations

from anyengine.stats import EngineStats, KVCacheStats, SpeculativeStats

from anyengine_server.metrics import Metrics

__all__ = ["read_stats"]

#: Finish reason there → ours; others are counted under their own names.
_REASONS = {"stop": "stop", "length": "length", "abort": "abort"}


def read_stats(text: str) -> EngineStats:
    """Statistics of one scrape.

    Raises:
        MalformedAnswer: it cannot be read.
    """
    metrics = Metrics(text)
    finished = metrics.by_label("vllm:request_success_total", "finished_reason")
    capacity = _capacity(metrics)
    usage = metrics.number("vllm:kv_cache_usage_perc")
    drafts = metrics.count("vllm:spec_decode_num_drafts_total")
    return EngineStats(
        running=metrics.count("vllm:num_requests_running"),
        waiting=metrics.count("vllm:num_requests_waiting"),
        requests={_REASONS.get(name, name): count for name, count in finished.items()} or None,
        prompt_tokens=metrics.count("vllm:prompt_tokens_total"),
        generated_tokens=metrics.count("vllm:generation_tokens_total"),
        preemptions=metrics.count("vllm:num_preemptions_total"),
        kv_cache=KVCacheStats(
            capacity_tokens=capacity,
            used_tokens=None if capacity is None or usage is None else round(usage * capacity),
            usage=usage,
            prefix_queries=metrics.count("vllm:prefix_cache_queries_total"),
            prefix_hits=metrics.count("vllm:prefix_cache_hits_total"),
        ),
        speculative=None
        if drafts is None
        else SpeculativeStats(
            drafts=drafts,
            drafted_tokens=metrics.count("vllm:spec_decode_num_draft_tokens_total"),
            accepted_tokens=metrics.count("vllm:spec_decode_num_accepted_tokens_total"),
        ),
        time_to_first_token=metrics.histogram("vllm:time_to_first_token_seconds"),
        inter_token_latency=metrics.histogram("vllm:inter_token_latency_seconds"),
        queue_time=metrics.histogram("vllm:request_queue_time_seconds"),
    )


def _capacity(metrics: Metrics) -> int | None:
    """Tokens that the cache holds: vLLM keeps one block back."""
    labels = metrics.labels("vllm:cache_config_info")
    try:
        return (int(labels["num_gpu_blocks"]) - 1) * int(labels["block_size"])
    except (KeyError, ValueError):
        return None
