"""What computes: the reference engine's core in a thread, for either backend."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine.backend import DeltaCollector, TokenRequest
from anyengine.request import SamplingParams
from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache, Segment, load_model
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.sequence import Sequence
from anyengine_reference.speculation import DraftModel
from anyengine_reference.thread import EngineThread

from .facts import SimulationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["DEVICE_FREE", "DEVICE_TOTAL", "Executor", "Running"]

#: Bytes of the simulated device.
DEVICE_TOTAL = 80 * 2**30
DEVICE_FREE = 70 * 2**30
#: More blocks than this hold are not made, whatever share of the device was asked for.
_MOST_TOKENS = 32768
_LOGIT_ROWS = 64


class _Scheduler(Scheduler):
    """One that can be asked what its last step was."""

    prefilled: frozenset[str] = frozenset()
    scores = False
    ticks = 0

    def schedule(self) -> Any:
        works = super().schedule()
        self.ticks += 1
        self.prefilled = frozenset(work.sequence.request.id for work in works if not work.sequence.generated)
        self.scores = any(work.sequence.scoring for work in works)
        return works


class _Core(Core):
    """Scores end their whole batch of prompts, as the PyTorch backend's engine has it.

    In 0.18.0 one request for log-probabilities of its prompt makes its prefill a scoring one
    (lmdeploy/pytorch/engine/model_agent/agent.py:634): every request that is prefilled with it gets token 0, and ends.
    """

    def _sample(self, sequence: Any, *others: Any) -> Any:
        scheduler: Any = self.scheduler
        if scheduler.scores and sequence.request.id in scheduler.prefilled:
            sequence.tokens.append(0)
            return [0], None, "stop"
        return super()._sample(sequence, *others)


class Running:
    """A request that was handed over.

    Attributes:
        sequence: its state in the engine.
        sampler: its sampler.
        finish: the last delta's, once it was read.
    """

    def __init__(self, executor: Executor, number: str, collector: Any, sequence: Any, sampler: Any) -> None:
        self._executor, self._number, self._collector = executor, number, collector
        self._aborting: asyncio.Task[None] | None = None
        self.sequence, self.sampler = sequence, sampler
        self.finish: Any = None
        self.read = 0

    async def next(self) -> Any:
        """The next delta: everything since the last time."""
        delta = await anext(self._collector)
        self.finish = delta.finish
        self.read += len(delta.token_ids)
        return delta

    def cancel(self) -> None:
        """End it soon."""
        if self._aborting is None and self.finish is None:
            self._aborting = asyncio.get_running_loop().create_task(self._executor.abort(self._number))

    async def end(self) -> None:
        """End it; it has ended when this returns."""
        if self.finish is None:
            await self._executor.abort(self._number)
            while self.finish is None:
                try:
                    await self.next()
                except Exception:  # noqa: BLE001 whatever it ended with, it ended
                    return


class Executor:
    """Model, cache and thread.

    Args:
        folder: of the checkpoint.
        block_size: tokens of a block of the cache.
        blocks: as many, or None for a share of the device's free memory.
        share: that share.
        limits: of the scheduler.
        draft: folder of a proposer's checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        block_size: int,
        blocks: int | None,
        share: float,
        limits: Limits,
        draft: Path | None = None,
    ) -> None:
        self.model: Any = load_model(folder)
        config = self.model.config
        if blocks is None:
            size = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4 * block_size
            blocks = min(int(share * DEVICE_FREE) // size, _MOST_TOKENS // block_size)
        self.blocks, self.block_size = blocks, block_size
        proposer: Any = None
        if draft is not None:
            proposed: Any = load_model(draft)
            proposer = DraftModel(proposed, KVCache(proposed.config, blocks, block_size))
        cache = KVCache(config, blocks, block_size)
        self.core = _Core(self.model, cache, _Scheduler(BlockPool(blocks), block_size, limits), proposer)
        self.vocab_size: int = config.vocab_size
        self.thread: EngineThread | None = None
        self._numbers = count(1)
        self.live: dict[str, Running] = {}

    def submit(
        self,
        prompt: list[int],
        make_sampler: Callable[[TokenRequest, int], Any],
        *,
        max_tokens: int,
        stops: list[int],
        constraint: Any = None,
        logprobs: int | None = None,
        scoring: bool = False,
    ) -> Running:
        """Hand a request over."""
        if self.thread is None:
            self.thread = EngineThread(self.core, asyncio.get_running_loop())
        if not prompt:
            raise SimulationError("an empty prompt stops the engine")
        if not all(type(token) is int and 0 <= token < self.vocab_size for token in prompt):
            raise SimulationError("a token that is none of the vocabulary is read beyond the embeddings")
        number = str(next(self._numbers))
        request = TokenRequest(
            id=number,
            prompt_token_ids=list(prompt),
            sampling=SamplingParams(temperature=0),
            max_tokens=max(max_tokens, 1),
            stop_token_ids=frozenset(stops),
            logprobs=None if scoring else logprobs,
            prompt_logprobs=logprobs if scoring else None,
        )
        sampler = make_sampler(request, self.vocab_size)
        collector = DeltaCollector()
        sequence = Sequence(request, collector, sampler, constraint, scoring=scoring)
        self.thread.submit(sequence)
        return Running(self, number, collector, sequence, sampler)

    async def abort(self, number: str) -> None:
        """End a request; its blocks are free when this returns."""
        if self.thread is not None:
            await self.thread.abort(number)

    def logits(self, tokens: list[int]) -> Any:
        """The model's own logits after each token, float32 [n, vocab]."""
        blocks = -(-len(tokens) // 16)
        cache = KVCache(self.model.config, blocks, 16)
        (rows,) = self.model.forward([Segment(tokens, 0, list(range(blocks)))], cache)
        parts = [self.model.logits(rows[at : at + _LOGIT_ROWS]) for at in range(0, len(rows), _LOGIT_ROWS)]
        return np.concatenate(parts)

    @property
    def schedule(self) -> dict[str, Any]:
        """What the scheduler reports."""
        stats = self.core.stats() if self.thread is None else self.thread.stats
        cache = stats.kv_cache
        looked_up = cache.prefix_queries or 0
        return {
            "active_seqs": stats.running,
            "waiting_seqs": stats.waiting,
            "cache_usage": cache.usage or 0.0,
            "prefix_cache_hit_rate": (cache.prefix_hits or 0) / looked_up if looked_up else 0.0,
            "scheduler_tick": self.core.scheduler.ticks,  # type: ignore[attr-defined]
        }

    def stop(self) -> None:
        """End every request, then the thread."""
        if self.thread is not None:
            self.thread.stop()
            self.thread._thread.join()
