"""TGI, loaded."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import anyio
from anyengine.backend import Backend, BackendInfo, TokenDelta, TokenFinish, TokenRequest
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineUnresponsive,
    InvalidConfig,
    PluginError,
    UnsupportedCapability,
)
from anyengine.outputs import Score
from anyengine.request import SamplingParams
from anyengine_server import RunningRequests, vocabulary_size

from anyengine_tgi import generation
from anyengine_tgi import request as requests
from anyengine_tgi.capabilities import narrowed
from anyengine_tgi.stats import read_stats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from collections.abc import Sequence as SequenceOf

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats
    from anyengine_server import ServerClient, ServerProcess

    from anyengine_tgi.prompts import Prompts
    from anyengine_tgi.wire import Info

__all__ = ["TgiBackend"]

#: Seconds in which the server lets go of requests that were ended; it does so with its next step.
_SETTLING = 10.0
_POLL = 0.01
_HEALTH_SECONDS = 30.0
_PATIENCE = 15.0


class TgiBackend(Backend):
    """Token level face of TGI's HTTP server. Made on the event loop that it serves.

    Args:
        config: what it was loaded with.
        model: the checkpoint.
        info: what the server says about itself.
        client: to it.
        prompts: finds and proves texts.
        process: the launcher, where it was started here.
        dtype: of the weights, where it is known.
        prefill: whether the server gives log-probabilities of prompts.
        grammars: whether it takes constraints.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: ModelFiles,
        info: Info,
        *,
        client: ServerClient,
        prompts: Prompts,
        process: ServerProcess | None,
        dtype: str | None = None,
        prefill: bool,
        grammars: bool,
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._generation = generation.Generation(
            client, prompts, max_input_tokens=info.max_input_tokens, vocabulary=vocabulary_size(model)
        )
        self._process = process
        self._server = info
        self._speculative = config.speculative is not None
        self._requests = RunningRequests()
        self._ids = count()
        self._closed = False
        self._cleanup: Callable[[], None] | None = None
        self._settling = asyncio.Lock()
        self._settled_at = 0.0
        most = config.scheduling.max_num_seqs
        # TGI's own bound of a batch (--max-batch-size) counts only where it does not chunk prompts.
        self._places = None if most is None else asyncio.Semaphore(most)
        self._held = 0
        # TGI answers 429 beyond its bound, and the SDK hands over twice as many as run.
        runs = most if most is not None else max(1, info.max_concurrent_requests // 2)
        self._info = BackendInfo(
            capabilities=narrowed(config, attached=process is None, prefill_logprobs=prefill, grammars=grammars),
            max_model_len=_context(config, info, prefill=prefill),
            vocab_size=vocabulary_size(model),
            max_num_seqs=runs,
            dtype=dtype,
            device=None if process is None else "cuda",
            loras=tuple(model.loras) if config.lora is not None else (),
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    def on_close(self, cleanup: Callable[[], None]) -> None:
        """Called last, when the server has ended."""
        self._cleanup = cleanup

    # -- requests ---------------------------------------------------------------------------------

    def validate(self, request: TokenRequest) -> None:
        requests.check(request, max_input_tokens=self._server.max_input_tokens, dtype=self._info.dtype)
        self._prompts.text(request)

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self._requests.stream(request.id, self._guarded(request, self._generation.streamed))

    async def generate(self, request: TokenRequest) -> TokenDelta:
        # At once is cheaper, unless tokens have to be watched as they come.
        watched = bool(request.stop_token_ids) or request.max_tokens > generation.PIECE
        source = self._generation.streamed if watched else self._generation.whole
        total = TokenDelta([], None if request.logprobs is None else [])
        async for delta in self._requests.stream(request.id, self._guarded(request, source)):
            total.token_ids += delta.token_ids
            if total.logprobs is not None:
                total.logprobs += delta.logprobs or []
            total.finish = delta.finish
        if total.finish is None:
            raise PluginError("TGI ended a request without a finish")
        return total

    async def _guarded(
        self, request: TokenRequest, source: Callable[[TokenRequest, str], AsyncGenerator[TokenDelta]]
    ) -> AsyncGenerator[TokenDelta]:
        """A request's deltas, with a place of its own, a proven prompt, and errors that tell of a dead launcher."""
        try:
            async with self._place():
                text = self._prompts.text(request)
                await self._prompts.prove(text, request.prompt_token_ids)
                entries = None
                if request.prompt_logprobs is not None:
                    entries = await self._generation.prefill(text, request.prompt_token_ids)
                deltas = source(request, text)
                try:
                    async for delta in deltas:
                        if delta.finish is not None and entries is not None:
                            delta.finish = TokenFinish(delta.finish.reason, prompt_logprobs=entries)
                        yield delta
                finally:
                    await deltas.aclose()
        except EngineDied as error:
            raise await self._died(error) from error

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        if self._places is None:
            yield
            return
        self._held += 1
        try:
            await self._places.acquire()
        finally:
            self._held -= 1
        try:
            yield
        finally:
            self._places.release()

    async def score(self, token_ids: SequenceOf[int], logprobs: int) -> Score:
        if not self._info.capabilities.score:
            raise UnsupportedCapability(
                "TGI scores only where it was started with enable_prefill_logprobs", capability="score"
            )
        ids = list(token_ids)
        wanted = TokenRequest(
            id=f"score-{next(self._ids)}",
            prompt_token_ids=ids,
            sampling=SamplingParams(temperature=0),
            max_tokens=1,
            prompt_logprobs=logprobs,
        )
        requests.check(wanted, max_input_tokens=self._server.max_input_tokens, dtype=self._info.dtype)
        text = self._prompts.text_of(ids, None)
        async with self._place():
            await self._prompts.prove(text, ids)
            return Score(ids, await self._generation.prefill(text, ids))

    async def abort(self, request_id: str) -> None:
        if await self._requests.abort(request_id) and self._process is not None:
            await self._settle(time.monotonic())

    async def _settle(self, since: float) -> None:
        """Wait until the server holds no more requests than we have: it sees a closed connection with its next step.

        Where others use the server too that cannot be told.
        """
        async with self._settling:
            if self._settled_at > since or self._closed:
                return  # an abort beside this one has seen it
            with anyio.move_on_after(_SETTLING):
                while True:
                    asked = time.monotonic()
                    stats = await self.stats()
                    held = (stats.running or 0) + (stats.waiting or 0) - self._held
                    if held <= len(self._requests):
                        self._settled_at = asked
                        return
                    await anyio.sleep(_POLL)

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        try:
            text = (await self._client.get("/metrics")).decode(errors="replace")
        except EngineDied as error:
            raise await self._died(error) from error
        return read_stats(text, speculative=self._speculative, held=self._held)

    async def health(self) -> None:
        if self._process is not None and self._process.exit_status is not None:
            raise self._process.died()
        try:
            await self._client.get("/health", timeout=_HEALTH_SECONDS)
        except EngineUnresponsive:
            raise
        except EngineDied as error:
            raise await self._died(error) from error
        except AnyEngineError as error:
            raise EngineDied(f"TGI says that it is not well: {error.message}") from error

    async def _died(self, error: EngineDied) -> EngineDied:
        """The same error, with the launcher's own end if it has ended."""
        return error if self._process is None else await self._process.death() or error

    async def close(self) -> None:
        # Each step may be taken again: what a close that was cancelled has not done the next one does.
        self._closed = True
        await self._requests.close()
        await self._client.aclose()
        if self._process is not None:
            await self._process.stop(_PATIENCE)
        if self._cleanup is not None:
            await asyncio.to_thread(self._cleanup)


def _context(config: EngineConfig, info: Info, *, prefill: bool) -> int:
    """The server's context, or less if asked for; where it scores, one token less, for TGI always generates one.

    Where TGI itself found out how much fits in memory, a request that fills it has no room for drafts, which TGI sets
    aside for each: it would wait for ever, and all behind it.
    """
    own = info.max_total_tokens - (1 if prefill else 0)
    wanted = config.max_model_len
    if wanted is None:
        return own - (config.speculative.num_speculative_tokens if config.speculative is not None else 0)
    if wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the server's {own}", field="max_model_len")
    return wanted
