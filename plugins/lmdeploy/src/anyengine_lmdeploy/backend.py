"""LMDeploy, loaded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
from anyengine.backend import Backend, BackendInfo, TokenDelta
from anyengine.backend.cancellation import despite_cancellation
from anyengine.errors import EngineDied, EngineUnresponsive, InvalidRequest

from anyengine_lmdeploy import request as requests
from anyengine_lmdeploy.capabilities import narrowed
from anyengine_lmdeploy.checkpoints import vocab_size
from anyengine_lmdeploy.serving import Requests
from anyengine_lmdeploy.startup import Running, block_size, capacity_tokens, dtype_of, start, stop
from anyengine_lmdeploy.stats import Recorder
from anyengine_lmdeploy.structured import response_format

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from anyengine.backend import TokenRequest
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Score
    from anyengine.stats import EngineStats

    from anyengine_lmdeploy.options import BackendName

__all__ = ["LMDeployBackend", "load_backend"]

#: Seconds that TurboMind may take to report that a cache is free.
_LAST_REPORT = 0.2


async def load_backend(config: EngineConfig, model: ModelFiles) -> LMDeployBackend:
    """Bring LMDeploy up."""
    running = await start(config, model)
    try:
        return LMDeployBackend(config, model, running)
    except BaseException:
        await despite_cancellation(stop(running))
        raise


class LMDeployBackend(Backend):
    """Token level face of ``AsyncEngine``'s handles, each of which runs one request at a time.

    Made on the event loop that it serves.
    """

    def __init__(self, config: EngineConfig, model: ModelFiles, running: Running) -> None:
        self._config = config
        self._running = running
        self._engine = running.engine
        self._library = running.library
        self._backend: BackendName = running.backend
        self._speculates = running.arguments.speculative is not None
        self._closed = False
        self._recorder = Recorder(
            self._library.queued, self._library.scheduled, times_tokens=self._backend == "pytorch"
        )
        self._prefix_caching = bool(self._engine.backend_config.enable_prefix_caching)
        self._block_size = block_size(running)
        self._capacity = capacity_tokens(running)
        self._info = self._describe(model)
        self._requests = Requests(running, self._recorder, self._info.vocab_size)

    def _describe(self, model: ModelFiles) -> BackendInfo:
        tokens = vocab_size(model)
        settings = self._engine.backend_config
        length = int(self._engine.session_len)
        if self._backend == "pytorch":
            length = min(length, int(self._engine.engine.max_session_len))
        return BackendInfo(
            capabilities=narrowed(self._config, model, self._backend, vocab_size=tokens, speculates=self._speculates),
            max_model_len=length,
            vocab_size=tokens,
            max_num_seqs=int(settings.max_batch_size),
            dtype=dtype_of(self._running),
            device=str(self._library.torch.cuda.get_device_name(0)),
            loras=tuple(model.loras),
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    # -- requests ---------------------------------------------------------------------------------

    def validate(self, request: TokenRequest) -> None:
        requests.check(request, self._backend, vocab_size=self._info.vocab_size, greedy_only=self._speculates)
        if request.structured is None:
            return
        wanted = response_format(request.structured, self._library.grammar, backend=self._backend)
        try:
            # Else TurboMind would drop it with a warning, and the engine in PyTorch end for everybody.
            self._library.check_format(wanted)
        except ValueError as error:
            field = f"structured.{request.structured.kind}"
            raise InvalidRequest(f"{field}: {error}", field=field) from error

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self._requests.submit(request, streaming=True)

    async def generate(self, request: TokenRequest) -> TokenDelta:
        total = TokenDelta([], None if request.logprobs is None else [])
        async for delta in self._requests.submit(request, streaming=False):
            total.token_ids += delta.token_ids
            if total.logprobs is not None:
                total.logprobs += delta.logprobs or []
            total.finish = delta.finish
        return total

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        return await self._requests.score(token_ids, logprobs)

    async def abort(self, request_id: str) -> None:
        await self._requests.abort(request_id)

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        live = self._requests.unfinished
        scheduler = await self._engine.get_schedule_metrics()
        if not live and self._backend == "turbomind" and not self._prefix_caching:
            # What it reports is of its last step, in which requests that have ended since may still have been.
            with anyio.move_on_after(_LAST_REPORT):
                while float(scheduler.cache_usage) > 0:
                    await asyncio.sleep(_LAST_REPORT / 20)
                    scheduler = await self._engine.get_schedule_metrics()
        return self._recorder.snapshot(
            scheduler,
            live=live,
            capacity_tokens=self._capacity,
            block_size=self._block_size,
            speculative=self._speculates,
            prefix_caching=self._prefix_caching,
        )

    async def health(self) -> None:
        seen = await self._engine.health_probe(self._config.health_timeout)
        if seen["status"] != "unhealthy":
            return
        message = f"LMDeploy says that it does not work: {seen['message']}"
        if "scheduler_tick" in seen["message"]:
            raise EngineUnresponsive(message)
        raise EngineDied(message)

    async def sleep(self) -> None:
        await self._engine.sleep(1)

    async def wake(self) -> None:
        # On this loop: the engine in PyTorch wakes what waits on it.
        self._engine.wakeup()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._requests.close()
        await stop(self._running)
