"""The reference engine, loaded."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from anyengine.backend import Backend, BackendInfo, DeltaCollector, TokenRequest
from anyengine.errors import EngineDied, InvalidConfig, InvalidRequest, OutOfMemory
from anyengine.outputs import Score
from anyengine.request import SamplingParams

from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache, load_model
from anyengine_reference.sampling import Sampler
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.sequence import Sequence
from anyengine_reference.speculation import DraftModel, NGram
from anyengine_reference.structured import ConstraintCompiler
from anyengine_reference.thread import EngineThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Sequence as SequenceOf
    from pathlib import Path

    from anyengine.backend import TokenDelta
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

    from anyengine_reference.model import Model, ModelConfig
    from anyengine_reference.speculation import Proposer
    from anyengine_reference.structured import Constraint

__all__ = ["ReferenceBackend"]

BLOCK_SIZE = 16
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 512
#: Bytes that the cache takes at most if nobody says how large it shall be, beyond what one full context needs.
DEFAULT_CACHE_BYTES = 2**30


class ReferenceBackend(Backend):
    """Token level face of the engine; the work is done by :class:`EngineThread`."""

    def __init__(
        self,
        info: BackendInfo,
        thread: EngineThread,
        *,
        capacity_tokens: int,
        tokenizer: Path,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._info = info
        self._thread = thread
        self._capacity_tokens = capacity_tokens
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._compiler: ConstraintCompiler | None = None
        self._scores = 0

    @classmethod
    def load(
        cls, config: EngineConfig, files: ModelFiles, capabilities: Capabilities, loop: asyncio.AbstractEventLoop
    ) -> ReferenceBackend:
        """Read the weights, make the cache, start the thread. Takes seconds; not for an event loop.

        Raises:
            UnsupportedModel, BadCheckpoint: the model, or its draft model, cannot be run.
            InvalidConfig, OutOfMemory: the cache cannot be made as asked.
        """
        model = load_model(files.path, quantization=config.quantization)
        max_model_len = _max_model_len(config, model.config)
        block_size = config.kv_cache.block_size or BLOCK_SIZE
        num_blocks = _num_blocks(config, model.config, max_model_len, block_size)
        proposer = _proposer(config, files, model, num_blocks, block_size)
        limits = Limits(
            max_num_seqs=config.scheduling.max_num_seqs or MAX_NUM_SEQS,
            max_num_batched_tokens=config.scheduling.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS,
            chunked_prefill=config.scheduling.chunked_prefill is not False,
            prefix_caching=config.kv_cache.prefix_caching is not False,
            num_speculative_tokens=config.speculative.num_speculative_tokens if config.speculative else 0,
        )
        scheduler = Scheduler(BlockPool(num_blocks), block_size, limits)
        core = Core(model, KVCache(model.config, num_blocks, block_size), scheduler, proposer)
        info = BackendInfo(
            capabilities=capabilities,
            max_model_len=max_model_len,
            vocab_size=model.config.vocab_size,
            max_num_seqs=limits.max_num_seqs,
            dtype="float32",
            device="cpu",
        )
        return cls(
            info,
            EngineThread(core, loop),
            capacity_tokens=num_blocks * block_size,
            tokenizer=files.tokenizer_path / "tokenizer.json",
            eos_token_ids=files.eos_token_ids,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    def validate(self, request: TokenRequest) -> None:
        length = len(request.prompt_token_ids) + request.max_tokens
        if length > self._capacity_tokens:
            raise InvalidRequest(
                f"max_tokens: prompt and completion may take {length} tokens, and the cache holds "
                f"{self._capacity_tokens} (kv_cache.capacity_tokens)",
                field="max_tokens",
            )

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        if request.structured is not None:
            return self._structured(request)
        return self._submit(request, None)

    def _submit(self, request: TokenRequest, constraint: Constraint | None, *, scoring: bool = False) -> DeltaCollector:
        collector = DeltaCollector()
        sampler = Sampler(request, self._info.vocab_size)
        self._thread.submit(Sequence(request, collector, sampler, constraint, scoring=scoring))
        return collector

    async def _structured(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Compiling a grammar may take a while: not on the event loop, and not in a step."""
        constraint = await asyncio.to_thread(self._compile, request)
        async for delta in self._submit(request, constraint):
            yield delta

    def _compile(self, request: TokenRequest) -> Constraint | None:
        if self._compiler is None:
            self._compiler = ConstraintCompiler(self._tokenizer, self._info.vocab_size, self._eos_token_ids)
        return None if request.structured is None else self._compiler.compile(request.structured)

    async def score(self, token_ids: SequenceOf[int], logprobs: int) -> Score:
        self._scores += 1
        request = TokenRequest(
            id=f"score-{self._scores}",
            prompt_token_ids=list(token_ids),
            sampling=SamplingParams(temperature=0),
            max_tokens=1,
            prompt_logprobs=logprobs,
        )
        try:
            async for delta in self._submit(request, None, scoring=True):
                if delta.finish is not None and delta.finish.prompt_logprobs is not None:
                    return Score(request.prompt_token_ids, delta.finish.prompt_logprobs)
        finally:
            await self.abort(request.id)
        raise EngineDied("the reference engine was closed while it scored")

    async def abort(self, request_id: str) -> None:
        await self._thread.abort(request_id)

    async def stats(self) -> EngineStats:
        return self._thread.stats

    async def health(self) -> None:
        if self._thread.died is not None:
            raise self._thread.died

    async def close(self) -> None:
        await self._thread.close()


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    wanted, own = config.max_model_len, model.max_position_embeddings
    if wanted is not None and wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the model's {own}", field="max_model_len")
    return wanted or own


def _num_blocks(config: EngineConfig, model: ModelConfig, max_model_len: int, block_size: int) -> int:
    """Blocks of the cache: as asked, or one full context and as many as fit in the default size."""
    token_bytes = 2 * 4 * model.num_layers * model.num_kv_heads * model.head_dim  # keys and values, float32
    wanted = config.kv_cache.capacity_tokens
    if wanted is None:
        wanted = max(max_model_len, min(MAX_NUM_SEQS * max_model_len, DEFAULT_CACHE_BYTES // token_bytes))
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted * token_bytes > physical:
        raise OutOfMemory(
            f"kv_cache.capacity_tokens: {wanted} tokens take {wanted * token_bytes / 2**30:.1f} GiB, and this machine "
            f"has {physical / 2**30:.1f} GiB in all",
            field="kv_cache.capacity_tokens",
        )
    return -(-wanted // block_size)


def _proposer(
    config: EngineConfig, files: ModelFiles, model: Model, num_blocks: int, block_size: int
) -> Proposer | None:
    if config.speculative is None:
        return None
    if files.draft is None:
        return NGram(config.speculative.ngram_min, config.speculative.ngram_max)
    draft = load_model(files.draft.path)
    if draft.config.vocab_size != model.config.vocab_size:
        raise InvalidConfig(
            f"speculative.model: its vocabulary has {draft.config.vocab_size} tokens, the model's has "
            f"{model.config.vocab_size}; they must share a tokenizer",
            field="speculative.model",
        )
    return DraftModel(draft, KVCache(draft.config, num_blocks, block_size))
