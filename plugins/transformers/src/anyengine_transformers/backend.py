"""The loaded engine."""

from __future__ import annotations

import asyncio
import random
import weakref
from itertools import count
from typing import TYPE_CHECKING

from anyengine.backend import Backend, BackendInfo, TokenRequest
from anyengine.errors import EngineClosed
from anyengine.outputs import Score
from anyengine.request import SamplingParams
from msgspec.structs import replace

from anyengine_transformers import loading
from anyengine_transformers.core import Core
from anyengine_transformers.errors import NAME
from anyengine_transformers.sampling import Sampler
from anyengine_transformers.sequence import Sequence
from anyengine_transformers.structured import ConstraintCompiler
from anyengine_transformers.thread import EngineThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Sequence as SequenceOf

    from anyengine.backend import TokenDelta
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

    from anyengine_transformers.model import CausalLM
    from anyengine_transformers.structured import Constraint

__all__ = ["TransformersBackend", "prepare"]

#: Requests that take turns if nobody says how many. Each keeps keys and values of its own.
MAX_NUM_SEQS = 16


class TransformersBackend(Backend):
    """Token level face of the engine; the work is done by :class:`EngineThread`.

    Made on the event loop that it serves, of what :func:`prepare` has read.
    """

    def __init__(
        self, info: BackendInfo, model: CausalLM, compiler: ConstraintCompiler | None, seed: int | None
    ) -> None:
        self._info = info
        self._compiler = compiler
        self._compiling: set[str] = set()
        self._scores = count(1)
        self._random = random.Random(seed)  # noqa: S311 no secret: seeds of requests that came without
        core = Core(model, info.max_num_seqs or MAX_NUM_SEQS)
        self._thread = EngineThread(core, asyncio.get_running_loop())
        # An engine that is dropped without close does not keep its thread, and so its weights.
        weakref.finalize(self, self._thread.stop)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        sampler = Sampler(request, self._info.vocab_size, self._seed(request))
        if request.structured is None:
            sequence = Sequence(request, sampler)
            self._thread.submit(sequence)
            return sequence.collector
        self._compiling.add(request.id)
        return self._structured(request, sampler)

    def _seed(self, request: TokenRequest) -> int:
        seed = request.sampling.seed
        return self._random.getrandbits(63) if seed is None and not request.sampling.greedy else seed or 0

    async def _structured(self, request: TokenRequest, sampler: Sampler) -> AsyncIterator[TokenDelta]:
        """Compiling may take a while: not on the event loop, and not between forward passes."""
        try:
            constraint = await asyncio.to_thread(self._compile, request)
            aborted = request.id not in self._compiling
        finally:
            self._compiling.discard(request.id)
        sequence = Sequence(request, sampler, constraint)
        if aborted:
            yield sequence.ended("abort")
            return
        self._thread.submit(sequence)
        async for delta in sequence.collector:
            yield delta

    def _compile(self, request: TokenRequest) -> Constraint | None:
        if self._compiler is None or request.structured is None:
            return None  # the SDK has refused what is not declared
        return self._compiler.compile(request.structured)

    async def score(self, token_ids: SequenceOf[int], logprobs: int) -> Score:
        request = TokenRequest(
            id=f"score-{next(self._scores)}",
            prompt_token_ids=list(token_ids),
            sampling=SamplingParams(temperature=0),
            max_tokens=1,
            prompt_logprobs=logprobs,
        )
        sequence = Sequence(request, sampler=None)
        self._thread.submit(sequence)
        try:
            async for delta in sequence.collector:
                if delta.finish is not None and delta.finish.prompt_logprobs is not None:
                    return Score(request.prompt_token_ids, delta.finish.prompt_logprobs)
        finally:
            await self.abort(request.id)
        raise EngineClosed(f"{NAME} was closed while it scored", engine=NAME)

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
) -> tuple[BackendInfo, CausalLM, ConstraintCompiler | None, int | None]:
    """Read the weights and try the model out. Takes seconds, starts nothing; not for an event loop."""
    device, dtype = loading.choose_device(config.device), loading.choose_dtype(config.dtype)
    settings = loading.load_settings(config, files)
    max_model_len = loading.context_length(config, settings)
    narrowed = loading.narrow(capabilities, config, settings, device)
    model = loading.load_model(config, files, settings, device, dtype)
    compiler = ConstraintCompiler.of(files, model.vocab_size)
    info = BackendInfo(
        capabilities=narrowed if compiler else replace(narrowed, structured=frozenset()),
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        max_num_seqs=config.scheduling.max_num_seqs or MAX_NUM_SEQS,
        dtype=dtype,
        device=device,
    )
    return info, model, compiler, config.seed
