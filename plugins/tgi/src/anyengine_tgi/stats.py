"""TGI's ``/metrics`` as statistics."""

from __future__ import annotations

from anyengine.stats import EngineStats, SpeculativeStats
from anyengine_server import Metrics

__all__ = ["METRICS", "read_stats"]

#: Read by name; every other one stands in ``native``.
METRICS = frozenset({
    "tgi_batch_current_size",
    "tgi_queue_size",
    "tgi_request_generated_tokens",
    "tgi_request_input_length",
    "tgi_request_queue_duration",
    "tgi_request_skipped_tokens",
})  # fmt: skip


def read_stats(text: str, *, speculative: bool, held: int = 0) -> EngineStats:
    """Statistics of one scrape.

    TGI reports neither the cache, nor time to first token, nor tokens of requests that did not finish; its mean time a
    token is one number a request, no distribution of the times between tokens.

    Args:
        text: as the server answers.
        speculative: whether it drafts.
        held: requests that wait here for a place.

    Raises:
        MalformedAnswer: it cannot be read.
    """
    metrics = Metrics(text)
    running, queue = metrics.count("tgi_batch_current_size"), metrics.count("tgi_queue_size")
    accepted = metrics.count("tgi_request_skipped_tokens_sum")
    return EngineStats(
        # A gauge appears when it is set for the first time.
        running=running or 0,
        waiting=(queue or 0) + held,
        prompt_tokens=metrics.count("tgi_request_input_length_sum") or 0,
        speculative=SpeculativeStats(accepted_tokens=accepted or 0) if speculative else None,
        queue_time=metrics.histogram("tgi_request_queue_duration"),
        # The parser adds an ending to counters that TGI does not write.
        native={name.removesuffix("_total"): value for name, value in metrics.native("tgi_").items()},
    )
