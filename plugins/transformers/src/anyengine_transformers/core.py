"""Which request goes on, and what is counted. No thread, no event loop."""

from __future__ import annotations

from bisect import insort
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from anyengine.stats import EngineStats, Histogram, KVCacheStats
from msgspec.structs import replace

from anyengine_transformers import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.backend import DeltaCollector, TokenDelta
    from anyengine.errors import AnyEngineError

    from anyengine_transformers.model import CausalLM
    from anyengine_transformers.sequence import Sequence

__all__ = ["Core", "Delivery"]

#: What a reader gets: a delta, or the error that ends its request.
Delivery = tuple["DeltaCollector", "TokenDelta | AnyEngineError"]


class Core:
    """The model and its requests, in turn: a step is one forward pass of one of them.

    Used by one thread at a time.

    Args:
        model: what computes.
        max_num_seqs: requests that take turns; the others wait.

    Attributes:
        deliveries: what has come of the steps since somebody took it from here.
    """

    def __init__(self, model: CausalLM, max_num_seqs: int) -> None:
        self._model = model
        self._max_num_seqs = max_num_seqs
        self._running: deque[Sequence] = deque()
        self._waiting: list[Sequence] = []
        self.deliveries: list[Delivery] = []
        self._arrivals = 0
        self._requests = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._first_token = Histogram()
        self._inter_token = Histogram()
        self._queue = Histogram()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Accept a request."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        insort(self._waiting, sequence, key=lambda each: each.order)

    def step(self) -> None:
        """Let the request whose turn it is go on.

        Its failure is its own. Only the loss of the device is raised.
        """
        while self._waiting and len(self._running) < self._max_num_seqs:
            self._begin(self._waiting.pop(0))
        sequence = self._running.popleft()
        try:
            delta = sequence.step()
        except BaseException as error:
            self._running.append(sequence)  # to be ended with the others, or here
            if errors.is_fatal(error):
                raise
            self._fail(sequence, errors.in_request(error))
            return
        self._running.append(sequence)
        if delta is None:
            return
        self._count(sequence, delta)
        if delta.finish is not None:
            self._remove(sequence, delta.finish.reason)
        self.deliveries.append((sequence.collector, delta))

    def abort(self, request_id: str) -> None:
        """End a request; nothing if there is none of that id."""
        for sequence in [*self._running, *self._waiting]:
            if sequence.request.id == request_id:
                self._remove(sequence, "abort")
                self.deliveries.append((sequence.collector, sequence.ended("abort")))

    def end_all(self, error: Callable[[], AnyEngineError] | None) -> None:
        """End every request: with an error of its own, or by abort."""
        for sequence in [*self._running, *self._waiting]:
            if error is None:
                self.abort(sequence.request.id)
            else:
                self._fail(sequence, error())

    def take(self) -> list[Delivery]:
        """What has to be handed over, and from now on no more."""
        taken, self.deliveries = self.deliveries, []
        return taken

    def _begin(self, sequence: Sequence) -> None:
        sequence.begin(self._model)
        self._running.append(sequence)
        if not sequence.scoring:
            self._prompt_tokens += len(sequence.request.prompt_token_ids)
            self._queue.observe(monotonic() - sequence.accepted_at)

    def _fail(self, sequence: Sequence, error: AnyEngineError) -> None:
        self._remove(sequence, "error")
        self.deliveries.append((sequence.collector, error))

    def _remove(self, sequence: Sequence, reason: str) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.release()
        if not sequence.scoring:
            self._requests[reason] += 1
        if not self.busy:
            self._model.release()

    def _count(self, sequence: Sequence, delta: TokenDelta) -> None:
        if not delta.token_ids:
            return
        now, before = monotonic(), sequence.last_token_at
        self._generated_tokens += len(delta.token_ids)
        if before is None:
            self._first_token.observe(now - sequence.accepted_at)
        else:
            self._inter_token.observe(now - before)
        sequence.last_token_at = now

    def stats(self) -> EngineStats:
        """A snapshot that shares nothing with the counters."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            requests=dict(self._requests),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=0,
            # No capacity: keys and values are allocated as texts grow.
            kv_cache=KVCacheStats(used_tokens=sum(sequence.held for sequence in self._running)),
            time_to_first_token=_copy(self._first_token),
            inter_token_latency=_copy(self._inter_token),
            queue_time=_copy(self._queue),
            native={"keeps_cache": self._model.keeps_cache},
        )


def _copy(histogram: Histogram) -> Histogram:
    return replace(histogram, counts=list(histogram.counts))
