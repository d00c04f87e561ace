"""Which tokens of which sequences are computed in the next step.

Continuous batching (Yu et al. 2022, Orca): sequences join and leave between steps. A step's tokens are bounded; long
prompts are cut in chunks (Agrawal et al. 2023, arXiv:2308.16369). When blocks run out, the sequence that comes last by
priority and arrival gives up its blocks and is computed again later: the first in order always gets on, so there is no
deadlock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyengine_reference.blocks import BlockPool
    from anyengine_reference.sequence import Sequence

__all__ = ["Limits", "Scheduler", "Work"]


@dataclass(frozen=True)
class Limits:
    """Bounds of a step.

    Attributes:
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens in one step.
        chunked_prefill: whether a prompt may be cut; if not, one that is longer than a step has a step of its own.
        prefix_caching: whether blocks are reused.
        num_speculative_tokens: tokens proposed a step; 0 without speculation.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool
    prefix_caching: bool
    num_speculative_tokens: int = 0


@dataclass(slots=True)
class Work:
    """Tokens of one sequence to compute: ``count`` known ones from ``computed`` on, then proposed ones.

    Attributes:
        sequence: whose.
        count: known tokens to compute.
        samples: whether they are all that is known, so that new tokens come of it.
        lookahead: proposed tokens for which there are blocks; above 0 only in decoding.
    """

    sequence: Sequence
    count: int
    samples: bool
    lookahead: int = 0


@dataclass
class Scheduler:
    """Running and waiting sequences; used by the engine's thread only.

    Attributes:
        preemptions: how often a sequence gave up its blocks.
        prefix_queries: prompt tokens that were looked up for reuse.
        prefix_hits: prompt tokens that were found.
    """

    pool: BlockPool
    block_size: int
    limits: Limits
    running: list[Sequence] = field(default_factory=list["Sequence"])
    waiting: list[Sequence] = field(default_factory=list["Sequence"])
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda each: each.order)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks[::-1])
        sequence.blocks = []
        sequence.computed = 0

    def schedule(self) -> list[Work]:
        """Choose the next step's work; empty if nothing waits or runs."""
        budget = self.limits.max_num_batched_tokens
        step: list[Work] = []
        for sequence in sorted(self.running, key=lambda each: each.order):
            if sequence not in self.running:
                continue  # preempted for one before it
            work = self._plan(sequence, budget, alone=not step)
            if work is None or not self._make_room(sequence, work):
                continue
            budget -= work.count + work.lookahead
            step.append(work)
        while self.waiting and len(self.running) < self.limits.max_num_seqs and budget > 0:
            sequence = self.waiting[0]
            self._reuse(sequence)
            work = self._plan(sequence, budget, alone=not step)
            if work is None or self._missing(sequence, work) > self.pool.free:
                self._free(sequence)
                break
            self.waiting.pop(0)
            self.running.append(sequence)
            if sequence.started_at is None:
                sequence.started_at = monotonic()
                sequence.cached_tokens = sequence.computed
                self.prefix_queries += sequence.prompt_length if self.limits.prefix_caching else 0
                self.prefix_hits += sequence.computed
            self._grow(sequence, work)
            budget -= work.count
            step.append(work)
        return step

    def _plan(self, sequence: Sequence, budget: int, *, alone: bool) -> Work | None:
        """What fits in the budget; None if nothing does."""
        left = len(sequence.tokens) - sequence.computed
        if left > budget and not self.limits.chunked_prefill:
            return Work(sequence, left, samples=True) if alone else None
        count = min(left, budget)
        if count < 1:
            return None
        lookahead = 0
        if left == 1 and sequence.generated:
            # One token more than proposed comes of a verification.
            room = sequence.request.max_tokens - sequence.generated - 1
            lookahead = max(0, min(self.limits.num_speculative_tokens, room, budget - count))
        return Work(sequence, count, samples=count == left, lookahead=lookahead)

    def _missing(self, sequence: Sequence, work: Work) -> int:
        """Blocks that the work needs and the sequence does not hold."""
        end = sequence.computed + work.count + work.lookahead
        return -(-end // self.block_size) - len(sequence.blocks)

    def _make_room(self, sequence: Sequence, work: Work) -> bool:
        """Get the blocks for a running sequence, preempting later ones; False if it had to go itself."""
        while self._missing(sequence, work) > self.pool.free:
            if work.lookahead:
                work.lookahead = 0  # a guess is worth nobody's cache
                continue
            last = max(self.running, key=lambda each: each.order)
            self.preemptions += 1
            self.running.remove(last)
            self._free(last)
            self.add(last)
            if last is sequence:
                return False
        self._grow(sequence, work)
        return True

    def _grow(self, sequence: Sequence, work: Work) -> None:
        sequence.blocks += [self.pool.allocate() for _ in range(self._missing(sequence, work))]

    def _reuse(self, sequence: Sequence) -> None:
        """Take the longest known chain of full blocks; at least the last token is always computed."""
        if not self.limits.prefix_caching or sequence.wants_prompt:
            return
        whole = (len(sequence.tokens) - 1) // self.block_size
        sequence.extend_keys(self.block_size, whole)
        for key in sequence.keys[:whole]:
            block = self.pool.find(key)
            if block is None:
                break
            sequence.blocks.append(block)
        sequence.computed = len(sequence.blocks) * self.block_size

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Say that the first ``computed`` tokens are in the cache; publishes the blocks that became full."""
        before, sequence.computed = sequence.computed, computed
        if not self.limits.prefix_caching:
            return
        first, full = before // self.block_size, computed // self.block_size
        sequence.extend_keys(self.block_size, full)
        for index in range(first, full):
            self.pool.publish(sequence.blocks[index], sequence.keys[index])
