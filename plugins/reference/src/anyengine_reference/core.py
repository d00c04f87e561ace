"""One step of the engine: schedule, propose, compute, sample, deliver. No thread, no event loop."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import msgspec
from anyengine.backend import TokenDelta, TokenFinish
from anyengine.errors import AnyEngineError, PluginError
from anyengine.stats import EngineStats, Histogram, KVCacheStats, SpeculativeStats

from anyengine_reference.logprobs import entry
from anyengine_reference.model import Segment
from anyengine_reference.speculation import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from anyengine.backend import DeltaCollector
    from anyengine.outputs import FinishReason, TokenLogprobs
    from numpy.typing import NDArray

    from anyengine_reference.model import KVCache, Model
    from anyengine_reference.sampling import Distribution
    from anyengine_reference.scheduler import Scheduler, Work
    from anyengine_reference.sequence import Sequence
    from anyengine_reference.speculation import Proposer

__all__ = ["Core", "Delivery"]

#: What a step gives to a reader: a delta, or the error that ends its request.
Delivery = tuple["DeltaCollector", TokenDelta | AnyEngineError]

#: Rows of logits that are made at once for a prompt; bounds the memory.
_LOGIT_ROWS = 32


class Core:
    """Model, cache, scheduler and counters. Used by one thread at a time."""

    def __init__(self, model: Model, cache: KVCache, scheduler: Scheduler, proposer: Proposer | None) -> None:
        self._model = model
        self._cache = cache
        self._proposer = proposer
        self.scheduler = scheduler
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._drafts = 0
        self._drafted = 0
        self._accepted = [0] * scheduler.limits.num_speculative_tokens
        self._first_token = Histogram()
        self._inter_token = Histogram()
        self._queue = Histogram()

    # -- requests ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Accept a sequence."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._sequences[sequence.request.id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> Iterator[Delivery]:
        """End a sequence; nothing if there is none of that id."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            yield self._end(sequence, [], None, "abort")

    def abort_all(self) -> Iterator[Delivery]:
        """End every sequence."""
        for request_id in list(self._sequences):
            yield from self.abort(request_id)

    def fail_all(self, error: Callable[[], AnyEngineError]) -> Iterator[Delivery]:
        """End every sequence with an error of its own."""
        for sequence in list(self._sequences.values()):
            yield self._fail(sequence, error())

    # -- a step -----------------------------------------------------------------------------------

    def step(self) -> list[Delivery]:
        """Compute one step for every scheduled sequence.

        An error in one sequence's sampling ends that sequence alone. An error of the model is raised.
        """
        works = self.scheduler.schedule()
        if not works:
            raise RuntimeError("no sequence can be scheduled")  # rather than stepping on for ever
        for work in works:
            self._begin(work.sequence)
        proposals = [self._propose(work) for work in works]
        segments = [
            Segment(
                work.sequence.tokens[work.sequence.computed : work.sequence.computed + work.count] + draft,
                work.sequence.computed,
                work.sequence.blocks,
            )
            for work, (draft, _) in zip(works, proposals, strict=True)
        ]
        hidden = self._model.forward(segments, self._cache)
        if self._proposer is not None:
            self._proposer.follow(segments)
        deliveries: list[Delivery] = []
        for work, (draft, drawn_from), rows in zip(works, proposals, hidden, strict=True):
            try:
                deliveries.extend(self._take(work, draft, drawn_from, rows))
            except BaseException as error:  # noqa: BLE001 one request's failure is its own; a panic in Rust is no Exception
                deliveries.append(self._fail(work.sequence, _mapped(error)))
        return deliveries

    def _propose(self, work: Work) -> tuple[list[int], list[Distribution] | None]:
        if self._proposer is None or not work.lookahead:
            return [], None
        return self._proposer.propose(work.sequence, work.lookahead)

    def _take(
        self, work: Work, draft: list[int], drawn_from: list[Distribution] | None, rows: NDArray[np.float32]
    ) -> Iterator[Delivery]:
        """Make what a sequence's rows are worth: log-probabilities of the prompt, new tokens."""
        sequence = work.sequence
        start, end = sequence.computed, sequence.computed + work.count
        if sequence.wants_prompt and len(sequence.prompt_entries) < sequence.prompt_length - 1:
            self._prompt_logprobs(sequence, start, rows[: work.count])
        if not work.samples:
            self.scheduler.advance(sequence, end)
            return
        if sequence.scoring:
            yield self._end(sequence, [], None, "length")
            return
        logits = self._model.logits(rows[work.count - 1 :])
        new, entries, reason = self._sample(sequence, logits, draft, drawn_from)
        if draft:
            kept = min(len(draft), len(new) - (new != draft[: len(new)]))
            self._count_draft(len(draft), kept)
        # Everything new but its last token has been computed already, as a draft.
        self.scheduler.advance(sequence, end + len(new) - 1)
        self._count_tokens(sequence, len(new))
        if reason is None:
            yield sequence.collector, TokenDelta(new, entries)
        else:
            yield self._end(sequence, new, entries, reason)

    def _sample(
        self,
        sequence: Sequence,
        logits: NDArray[np.float32],
        draft: list[int],
        drawn_from: list[Distribution] | None,
    ) -> tuple[list[int], list[TokenLogprobs] | None, FinishReason | None]:
        """Draw tokens, one for each row, until a proposal is refused or the sequence ends."""
        request, sampler, constraint = sequence.request, sequence.sampler, sequence.constraint
        new: list[int] = []
        entries: list[TokenLogprobs] | None = None if request.logprobs is None else []
        for index, row in enumerate(logits):
            position = len(sequence.tokens)
            mask = None if constraint is None else constraint.mask()
            shaped = sampler.shape(row, sequence.tokens, sequence.generated, mask)
            if index < len(draft):
                source = None if drawn_from is None else drawn_from[index]
                token, accepted = verify(sampler, shaped, position, draft[index], source)
            else:
                token, accepted = sampler.pick(shaped, position), False
            sequence.tokens.append(token)
            sampler.accept(token)
            new.append(token)
            if entries is not None:
                entries.append(entry(row, token, request.logprobs or 0))
            if token in request.terminators:
                return new, entries, "stop"
            if sequence.generated == request.max_tokens:
                return new, entries, "length"
            if constraint is not None:
                constraint.accept(token)
            if not accepted:
                break
        return new, entries, None

    def _prompt_logprobs(self, sequence: Sequence, start: int, rows: NDArray[np.float32]) -> None:
        """Entries for the prompt's tokens that these rows predict."""
        top = sequence.request.prompt_logprobs or 0
        known = min(len(rows), sequence.prompt_length - 1 - start)
        for first in range(0, known, _LOGIT_ROWS):
            logits = self._model.logits(rows[first : min(first + _LOGIT_ROWS, known)])
            for offset, row in enumerate(logits):
                position = start + first + offset + 1
                sequence.prompt_entries[position] = entry(row, sequence.tokens[position], top)

    # -- endings and counters ---------------------------------------------------------------------

    def _end(
        self, sequence: Sequence, token_ids: list[int], entries: list[TokenLogprobs] | None, reason: FinishReason
    ) -> Delivery:
        self._remove(sequence, reason)
        prompt = None
        if sequence.wants_prompt and len(sequence.prompt_entries) == sequence.prompt_length - 1:
            prompt = [None, *(sequence.prompt_entries[index] for index in range(1, sequence.prompt_length))]
        if sequence.request.logprobs is not None and entries is None:
            entries = []
        return sequence.collector, TokenDelta(token_ids, entries, TokenFinish(reason, sequence.cached_tokens, prompt))

    def _fail(self, sequence: Sequence, error: AnyEngineError) -> Delivery:
        if sequence.request.id in self._sequences:
            self._remove(sequence, "error")
        return sequence.collector, error

    def _remove(self, sequence: Sequence, reason: str) -> None:
        del self._sequences[sequence.request.id]
        self.scheduler.remove(sequence)
        if not sequence.scoring:
            self._finished[reason] += 1

    def _begin(self, sequence: Sequence) -> None:
        """Count a sequence whose computation starts; nothing if it has started before."""
        if sequence.started_at is None:
            sequence.started_at = monotonic()
            if not sequence.scoring:
                self._prompt_tokens += sequence.prompt_length
                self._queue.observe(sequence.started_at - sequence.accepted_at)

    def _count_tokens(self, sequence: Sequence, count: int) -> None:
        now = monotonic()
        self._generated_tokens += count
        if sequence.last_token_at is None:
            self._first_token.observe(now - sequence.accepted_at)
            count -= 1
        if count and sequence.last_token_at is not None:
            self._inter_token.observe((now - sequence.last_token_at) / count, count)
        sequence.last_token_at = now

    def _count_draft(self, drafted: int, kept: int) -> None:
        self._drafts += 1
        self._drafted += drafted
        for position in range(kept):
            self._accepted[position] += 1

    def stats(self) -> EngineStats:
        """A snapshot that shares nothing with the counters."""
        scheduler = self.scheduler
        pool, size = scheduler.pool, scheduler.block_size
        speculative = SpeculativeStats(
            drafts=self._drafts,
            drafted_tokens=self._drafted,
            accepted_tokens=sum(self._accepted),
            accepted_per_position=tuple(self._accepted),
        )
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            requests=dict(self._finished),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.preemptions,
            kv_cache=KVCacheStats(
                capacity_tokens=pool.num_blocks * size,
                used_tokens=pool.used * size,
                usage=pool.used / pool.num_blocks,
                prefix_queries=scheduler.prefix_queries,
                prefix_hits=scheduler.prefix_hits,
            ),
            speculative=None if self._proposer is None else speculative,
            time_to_first_token=_copy(self._first_token),
            inter_token_latency=_copy(self._inter_token),
            queue_time=_copy(self._queue),
        )


def _copy(histogram: Histogram) -> Histogram:
    return msgspec.structs.replace(histogram, counts=list(histogram.counts))


def _mapped(error: BaseException) -> AnyEngineError:
    if isinstance(error, AnyEngineError):
        return error
    wrapped = PluginError(f"the reference engine failed on this request: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
