"""The simulated executor: the reference engine's core in a thread, its iterations reported."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from anyengine.backend import DeltaCollector, TokenRequest
from anyengine.request import SamplingParams, Structured
from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache, Segment, load_model
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.sequence import Sequence
from anyengine_reference.speculation import DraftModel, NGram
from anyengine_reference.structured import ConstraintCompiler
from anyengine_reference.thread import EngineThread

from .sampling import SimulatedSampler

__all__ = ["Executor"]

_LOGIT_ROWS = 64
_SEQUENCES = 64
#: That memory has room for.
_CACHE_TOKENS = 32768


class ReportingCore(Core):
    """A core that reports each of its steps by the names of TensorRT-LLM's iteration statistics."""

    def __init__(self, *args: Any, most: int) -> None:
        super().__init__(*args)
        self.iterations: deque[dict[str, Any]] = deque(maxlen=most)
        self._numbers = count()
        self._before = (0, 0)

    def step(self) -> Any:
        deliveries = super().step()
        stats = self.stats()
        cache, size = stats.kv_cache, self.scheduler.block_size
        hits, looked_up = cache.prefix_hits or 0, cache.prefix_queries or 0
        iteration: dict[str, Any] = {
            "iter": next(self._numbers),
            "iterLatencyMS": 0.0,
            "numActiveRequests": stats.running,
            "numQueuedRequests": stats.waiting,
            "gpuMemUsage": 0,
            "kvCacheStats": {
                "maxNumBlocks": (cache.capacity_tokens or 0) // size,
                "usedNumBlocks": (cache.used_tokens or 0) // size,
                "freeNumBlocks": ((cache.capacity_tokens or 0) - (cache.used_tokens or 0)) // size,
                "tokensPerBlock": size,
                "reusedBlocks": hits // size,
                "missedBlocks": (looked_up - hits) // size,
                "cacheHitRate": hits / looked_up if looked_up else 0.0,
            },
            "specDecodingStats": None,
        }
        if stats.speculative is not None:
            drafted, accepted = stats.speculative.drafted_tokens or 0, stats.speculative.accepted_tokens or 0
            iteration["specDecodingStats"] = {
                "numDraftTokens": drafted - self._before[0],
                "numAcceptedTokens": accepted - self._before[1],
            }
            self._before = drafted, accepted
        self.iterations.append(iteration)
        return deliveries


class Executor:
    """Runs requests.

    Args:
        folder: of the checkpoint.
        tokenizer: folder with ``tokenizer.json``.
        arguments: of ``LLM``, complete.
        limits: most sequences, most tokens of a step, context.
    """

    def __init__(self, folder: Path, tokenizer: Path, arguments: Any, limits: dict[str, int | None]) -> None:
        self.model: Any = load_model(folder)
        self.context = limits["max_seq_len"] or self.model.config.max_position_embeddings
        kv_cache = arguments.kv_cache_config
        size = kv_cache.tokens_per_block
        # More than there is room for is lowered with a warning, and so is a context that the cache does not hold.
        blocks = -(-min(kv_cache.max_tokens or _CACHE_TOKENS, _CACHE_TOKENS) // size)
        self.context = min(self.context, blocks * size)
        speculation = arguments.speculative_config
        drafted = 0 if speculation is None else speculation.max_draft_len or 0
        scheduler = Scheduler(
            BlockPool(blocks),
            size,
            Limits(
                max_num_seqs=min(limits["max_batch_size"] or _SEQUENCES, _SEQUENCES),
                max_num_batched_tokens=limits["max_num_tokens"] or 8192,
                chunked_prefill=arguments.enable_chunked_prefill,
                prefix_caching=kv_cache.enable_block_reuse,
                num_speculative_tokens=drafted,
            ),
        )
        proposer: Any = None
        if speculation is not None and type(speculation).__name__ == "NGramDecodingConfig":
            proposer = NGram(1, speculation.max_matching_ngram_size)
        elif speculation is not None and speculation.speculative_model is not None:
            draft: Any = load_model(Path(speculation.speculative_model))
            proposer = DraftModel(draft, KVCache(draft.config, blocks, size))
        cache = KVCache(self.model.config, blocks, size)
        most = getattr(arguments, "max_stats_len", 1000)
        self.core = ReportingCore(self.model, cache, scheduler, proposer, most=most)
        self.thread: EngineThread | None = None
        self._tokenizer = tokenizer
        self._compilers: dict[int, ConstraintCompiler] = {}
        self._shared = np.random.default_rng(42)
        self._numbers = count(1)

    def submit(self, prompt: list[int], params: Any, salt: str | None, *, in_cpp: bool) -> tuple[int, Any, Any]:
        """Hand a request over: its number, its collector, and the sequence."""
        if self.thread is None:
            # Outputs are read on the loop that requests come from.
            self.thread = EngineThread(self.core, asyncio.get_running_loop())
        number = next(self._numbers)
        room = self.context - len(prompt)
        end = -1 if params.ignore_eos else params.end_id
        stops = {word[0] for word in params.stop_words if len(word) == 1}
        request = TokenRequest(
            id=str(number),
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0) if params.greedy else SamplingParams(seed=0),
            # More than fits is lowered, with a warning that nobody sees.
            max_tokens=max(min(params.max_tokens, room), 1),
            eos_token_ids=frozenset({end}) if end >= 0 else frozenset(),
            stop_token_ids=frozenset(stops),
            cache_salt=salt,
        )
        sampler = SimulatedSampler(request, self.model.config.vocab_size, params, in_cpp=in_cpp, shared=self._shared)
        constraint = None if params.guided_decoding is None else self._constraint(params.guided_decoding, request)
        collector = DeltaCollector()
        sequence = Sequence(request, collector, sampler, constraint)
        self.thread.submit(sequence)
        return number, collector, sequence

    def _constraint(self, guided: Any, request: TokenRequest) -> Any:
        kind, value = next(
            (name, value)
            for name, value in (("json_schema", guided.json), ("regex", guided.regex), ("grammar", guided.grammar))
            if value is not None
        )
        if kind == "json_schema" and isinstance(value, str):
            import json

            value = {key: each for key, each in json.loads(value).items() if key != "x-guidance"}
        ends = request.terminators or frozenset({0})
        key = hash(ends)
        if key not in self._compilers:
            file = self._tokenizer / "tokenizer.json"
            self._compilers[key] = ConstraintCompiler(file, self.model.config.vocab_size, ends)
        return self._compilers[key].compile(Structured(**{kind: value}))

    def logits(self, tokens: list[int]) -> Any:
        """The model's own logits after each token, float32 [n, vocab]."""
        blocks = -(-len(tokens) // 16)
        cache = KVCache(self.model.config, blocks, 16)
        (rows,) = self.model.forward([Segment(tokens, 0, list(range(blocks)))], cache)
        parts = [self.model.logits(rows[at : at + _LOGIT_ROWS]) for at in range(0, len(rows), _LOGIT_ROWS)]
        return np.concatenate(parts)

    def drain(self) -> list[dict[str, Any]]:
        """The iterations since the last time."""
        iterations = self.core.iterations
        return [iterations.popleft() for _ in range(len(iterations))]

    def waits_for_a_place(self, sequence: Any) -> bool:
        """Whether as many requests as there may be are active, and this is none of them."""
        scheduler = self.core.scheduler
        return sequence in scheduler.waiting and len(scheduler.running) >= scheduler.limits.max_num_seqs

    def abort(self, number: int) -> Any:
        """A coroutine that ends a request."""
        assert self.thread is not None
        return self.thread.abort(str(number))

    def stop(self) -> None:
        if self.thread is not None:
            self.thread.stop()
            self.thread._thread.join()
