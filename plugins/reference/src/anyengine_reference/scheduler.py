"""Which tokens of which sequences are computed in the next step.

Continuous batching (Yu et al. 2022, Orca): sequences join and leave between steps. A step's tokens are bounded; long
prompts are cut in chunks (Agrawal et al. 2023, arXiv:2308.16369). When blocks run out, the sequence that comes last by
priority and arrival gives up its blocks and is computed again later: the first in order always gets on, so there is no
deadlock.

How many tokens are proposed for a sequence, and at which of its positions, follows from the sequence alone: otherwise
the same seed would give other draws beside other requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
        preemptions = self.preemptions
        step: list[Work] = []
        for sequence in sorted(self.running, key=lambda each: each.order):
            if sequence not in self.running:
                continue  # preempted for one before it
            work = self._plan(sequence, budget, alone=not step)
            if work is None or not self._make_room(sequence, work):
                continue
            budget -= work.count + work.lookahead
            step.append(work)
        if self.preemptions > preemptions and step:
            return step  # who has just given way would take the blocks back, and lose them again
        while self.waiting and len(self.running) < self.limits.max_num_seqs and budget > 0:
            sequence = self.waiting[0]
            looked_up = self._reuse(sequence)
            work = self._plan(sequence, budget, alone=not step)
            if work is None or self._to_begin(sequence, work) > self.pool.free:
                self._free(sequence)
                break
            self.waiting.pop(0)
            self.running.append(sequence)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.computed
                self.prefix_queries += sequence.prompt_length if looked_up else 0
                self.prefix_hits += sequence.computed
            self._grow(sequence, work)
            budget -= work.count + work.lookahead
            step.append(work)
        return step

    def _plan(self, sequence: Sequence, budget: int, *, alone: bool) -> Work | None:
        """What fits in the budget; None if nothing does."""
        known = len(sequence.tokens) - sequence.computed
        lookahead = self._lookahead(sequence)
        if lookahead and known == 1:
            return Work(sequence, 1, samples=True, lookahead=lookahead) if lookahead < budget else None
        # After a preemption the last token is left for a step of its own, as it had without one.
        left = known - 1 if lookahead else known
        if left > budget and not self.limits.chunked_prefill:
            return Work(sequence, left, samples=left == known) if alone else None
        count = min(left, budget)
        return Work(sequence, count, samples=count == known) if count > 0 else None

    def _lookahead(self, sequence: Sequence) -> int:
        """Tokens to propose in the sequence's next decoding: one token more than proposed comes of a verification."""
        if not sequence.generated:
            return 0
        room = sequence.request.max_tokens - sequence.generated - 1
        return min(self.limits.num_speculative_tokens, room, self.limits.max_num_batched_tokens - 1)

    def _blocks_to(self, sequence: Sequence, end: int) -> int:
        """Blocks that the sequence lacks for its first ``end`` positions."""
        return -(-end // self.block_size) - len(sequence.blocks)

    def _missing(self, sequence: Sequence, work: Work) -> int:
        """Blocks that the work needs and the sequence does not hold."""
        return self._blocks_to(sequence, sequence.computed + work.count + work.lookahead)

    def _to_begin(self, sequence: Sequence, work: Work) -> int:
        """Blocks that a waiting sequence must find: for all of its tokens, lest it is begun only to give way."""
        return max(self._missing(sequence, work), self._blocks_to(sequence, len(sequence.tokens)))

    def _make_room(self, sequence: Sequence, work: Work) -> bool:
        """Get the blocks for a running sequence, preempting later ones; False if it had to go itself."""
        while self._missing(sequence, work) > self.pool.free:
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

    def _reuse(self, sequence: Sequence) -> bool:
        """Take the longest known chain of full blocks; at least the last token is always computed.

        Returns:
            Whether it was looked up.
        """
        if not self.limits.prefix_caching or sequence.wants_prompt:
            return False
        whole = (len(sequence.tokens) - 1) // self.block_size
        sequence.extend_keys(self.block_size, whole)
        for key in sequence.keys[:whole]:
            block = self.pool.find(key)
            if block is None:
                break
            sequence.blocks.append(block)
        sequence.computed = len(sequence.blocks) * self.block_size
        return True

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Say that the first ``computed`` tokens are in the cache; publishes the blocks that became full."""
        before, sequence.computed = sequence.computed, computed
        if not self.limits.prefix_caching:
            return
        first, full = before // self.block_size, computed // self.block_size
        sequence.extend_keys(self.block_size, full)
        for index in range(first, full):
            self.pool.publish(sequence.blocks[index], sequence.keys[index])
