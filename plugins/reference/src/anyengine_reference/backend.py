"""The reference engine, loaded."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING

from anyengine.backend import Backend, BackendInfo, DeltaCollector, TokenRequest
from anyengine.errors import EngineClosed, InvalidConfig, OutOfMemory
from anyengine.outputs import Score
from anyengine.request import SamplingParams
from msgspec.structs import replace

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

    from anyengine.backend import TokenDelta
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

    from anyengine_reference.model import Model
    from anyengine_reference.speculation import Proposer
    from anyengine_reference.structured import Constraint

__all__ = ["ReferenceBackend", "prepare"]

BLOCK_SIZE = 16
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 512
#: Bytes that the cache takes at most if nobody says how large it shall be, beyond what one full context needs.
DEFAULT_CACHE_BYTES = 2**30


class ReferenceBackend(Backend):
    """Token level face of the engine; the work is done by :class:`EngineThread`.

    Made on the event loop that it serves, of what :func:`prepare` has read.
    """

    def __init__(self, info: BackendInfo, core: Core, compiler: ConstraintCompiler | None) -> None:
        self._info = info
        self._compiler = compiler
        self._compiling: set[str] = set()
        self._scores = 0
        self._thread = EngineThread(core, asyncio.get_running_loop())
        # An engine that was dropped without close does not keep its thread, and so its weights.
        weakref.finalize(self, self._thread.stop)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        if request.structured is None:
            return self._submit(self._sequence(request))
        self._compiling.add(request.id)
        return self._structured(request)

    def _sequence(
        self, request: TokenRequest, constraint: Constraint | None = None, *, scoring: bool = False
    ) -> Sequence:
        sampler = Sampler(request, self._info.vocab_size)
        return Sequence(request, DeltaCollector(), sampler, constraint, scoring=scoring)

    def _submit(self, sequence: Sequence) -> DeltaCollector:
        self._thread.submit(sequence)
        return sequence.collector

    async def _structured(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Compiling a grammar may take a while: not on the event loop, and not in a step."""
        try:
            constraint = await asyncio.to_thread(self._compile, request)
            sequence = self._sequence(request, constraint)
            aborted = request.id not in self._compiling
        finally:
            self._compiling.discard(request.id)
        if aborted:
            yield sequence.aborted()
            return
        async for delta in self._submit(sequence):
            yield delta

    def _compile(self, request: TokenRequest) -> Constraint | None:
        if self._compiler is None or request.structured is None:
            return None  # the SDK has refused what is not declared
        return self._compiler.compile(request.structured)

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
            async for delta in self._submit(self._sequence(request, scoring=True)):
                if delta.finish is not None and delta.finish.prompt_logprobs is not None:
                    return Score(request.prompt_token_ids, delta.finish.prompt_logprobs)
        finally:
            await self.abort(request.id)
        raise EngineClosed("the reference engine was closed while it scored")

    async def abort(self, request_id: str) -> None:
        self._compiling.discard(request_id)
        await self._thread.abort(request_id)

    async def stats(self) -> EngineStats:
        return self._thread.stats

    async def health(self) -> None:
        self._thread.check()

    async def close(self) -> None:
        self._compiling.clear()
        await self._thread.close()


def prepare(
    config: EngineConfig, files: ModelFiles, capabilities: Capabilities
) -> tuple[BackendInfo, Core, ConstraintCompiler | None]:
    """Read the weights and make the cache. Takes seconds, starts nothing; not for an event loop.

    Raises:
        UnsupportedModel, BadCheckpoint: the model, or its draft model, cannot be run.
        InvalidConfig, OutOfMemory: the cache cannot be made as asked.
    """
    model = load_model(files.path, quantization=config.quantization)
    draft = None if files.draft is None else load_model(files.draft.path)
    max_model_len = _max_model_len(config, model, draft)
    block_size = config.kv_cache.block_size or BLOCK_SIZE
    num_blocks = -(-_capacity(config, model, draft, max_model_len) // block_size)
    limits = Limits(
        max_num_seqs=config.scheduling.max_num_seqs or MAX_NUM_SEQS,
        max_num_batched_tokens=config.scheduling.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS,
        chunked_prefill=config.scheduling.chunked_prefill is not False,
        prefix_caching=config.kv_cache.prefix_caching is not False,
        num_speculative_tokens=config.speculative.num_speculative_tokens if config.speculative else 0,
    )
    proposer: Proposer | None = None
    if draft is not None:
        proposer = DraftModel(draft, KVCache(draft.config, num_blocks, block_size))
    elif config.speculative is not None:
        proposer = NGram(config.speculative.ngram_min, config.speculative.ngram_max)
    compiler = _compiler(files, model.config.vocab_size)
    info = BackendInfo(
        capabilities=capabilities if compiler else replace(capabilities, structured=frozenset()),
        max_model_len=max_model_len,
        vocab_size=model.config.vocab_size,
        max_num_seqs=limits.max_num_seqs,
        dtype="float32",
        device="cpu",
    )
    scheduler = Scheduler(BlockPool(num_blocks), block_size, limits)
    return info, Core(model, KVCache(model.config, num_blocks, block_size), scheduler, proposer), compiler


def _compiler(files: ModelFiles, vocab_size: int) -> ConstraintCompiler | None:
    """What makes constraints; None where the tokenizer is no byte-level one, or nothing can end a structure."""
    if not any(token < vocab_size for token in files.eos_token_ids):
        return None
    try:
        return ConstraintCompiler(files.tokenizer_path / "tokenizer.json", vocab_size, files.eos_token_ids)
    except ValueError:
        return None


def _max_model_len(config: EngineConfig, model: Model, draft: Model | None) -> int:
    """The context: as asked, or the model's, as far as the cache holds it."""
    wanted, capacity, own = config.max_model_len, config.kv_cache.capacity_tokens, model.config.max_position_embeddings
    if draft is not None and draft.config.vocab_size != model.config.vocab_size:
        raise InvalidConfig(
            f"speculative.model: its vocabulary has {draft.config.vocab_size} tokens, the model's has "
            f"{model.config.vocab_size}; they must share a tokenizer",
            field="speculative.model",
        )
    if draft is not None:
        own = min(own, draft.config.max_position_embeddings)
    if wanted is not None and wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the model's {own}", field="max_model_len")
    if wanted is not None and capacity is not None and capacity < wanted:
        raise InvalidConfig(
            f"kv_cache.capacity_tokens: {capacity} tokens do not hold one context of {wanted} (max_model_len)",
            field="kv_cache.capacity_tokens",
        )
    return wanted or min(own, capacity or own)


def _capacity(config: EngineConfig, model: Model, draft: Model | None, max_model_len: int) -> int:
    """Tokens that the cache holds: as asked, or one full context and as many as fit in the default size."""
    # Keys and values, float32, of the model and of its draft model.
    each = [m.config for m in (model, draft) if m is not None]
    token_bytes = sum(2 * 4 * c.num_layers * c.num_kv_heads * c.head_dim for c in each)
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
    return wanted
