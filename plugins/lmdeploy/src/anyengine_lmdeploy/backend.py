"""LMDeploy, loaded."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
from anyengine.backend import Backend, BackendInfo, DeltaCollector, TokenDelta, TokenRequest
from anyengine.backend.logits import row_logprobs
from anyengine.errors import EngineClosed, EngineDied, EngineUnresponsive, Failure, InvalidRequest, PluginError
from anyengine.outputs import Score
from anyengine.request import SamplingParams

from anyengine_lmdeploy import outputs
from anyengine_lmdeploy import request as requests
from anyengine_lmdeploy.capabilities import narrowed
from anyengine_lmdeploy.config import RESERVED_BLOCKS, block_size
from anyengine_lmdeploy.errors import request_error
from anyengine_lmdeploy.startup import Running, start, stop
from anyengine_lmdeploy.stats import Recorder, Timer
from anyengine_lmdeploy.structured import response_format

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import TokenLogprobs
    from anyengine.stats import EngineStats

    from anyengine_lmdeploy.options import BackendName

__all__ = ["LMDeployBackend", "load_backend"]

#: Seconds that the last outputs of aborted requests may take when the engine is closed.
_LAST_OUTPUTS = 5.0

#: Seconds that TurboMind may take to report that a cache is free.
_LAST_REPORT = 0.2


async def load_backend(config: EngineConfig, model: ModelFiles) -> LMDeployBackend:
    """Bring LMDeploy up."""
    running = await start(config, model)
    try:
        return LMDeployBackend(config, model, running)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await stop(running)
        raise


class _Live:
    """A request that has not ended.

    Attributes:
        task: reads LMDeploy's outputs to their end, whoever reads us. LMDeploy's generators may not be cancelled while
            they are read: they swallow it, and go on holding their handle.
        handle: of LMDeploy's, while it computes.
        session: LMDeploy's name of what it computes.
        aborted: from outside.
        over: its last delta is out; LMDeploy may still be clearing up.
    """

    __slots__ = ("aborted", "handle", "over", "session", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.handle: Any = None
        self.session = -1
        self.aborted = False
        self.over = False


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
        self._sessions = count(1)
        self._ids = count()
        self._live: dict[str, _Live] = {}
        self._closed = False
        self._recorder = Recorder(self._library.queued, self._library.scheduled)
        self._prefix_caching = bool(self._engine.backend_config.enable_prefix_caching)
        self._block_size = block_size(config)
        self._capacity = self._capacity_tokens()
        self._info = self._describe(model)

    def _capacity_tokens(self) -> int | None:
        if self._backend == "turbomind":
            return None  # it does not say how many blocks a share of memory came to
        return (int(self._engine.backend_config.num_gpu_blocks) - RESERVED_BLOCKS) * self._block_size

    def _describe(self, model: ModelFiles) -> BackendInfo:
        vocab_size = int(model.config["vocab_size"])
        settings = self._engine.backend_config
        length = int(self._engine.session_len)
        if self._backend == "pytorch":
            length = min(length, int(self._engine.engine.max_session_len))
            dtype = str(self._engine.engine.model_config.dtype).removeprefix("torch.")
        else:
            dtype = str(settings.dtype)
        return BackendInfo(
            capabilities=narrowed(
                self._config, model, self._backend, vocab_size=vocab_size, speculates=self._speculates
            ),
            max_model_len=length,
            vocab_size=vocab_size,
            max_num_seqs=int(settings.max_batch_size),
            dtype=dtype,
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
        collector = DeltaCollector()
        if self._closed:
            collector.put(outputs.aborted(request))
            return collector
        live = self._live[request.id] = _Live()
        timer = Timer(self._recorder, len(request.prompt_token_ids))

        def ended(task: asyncio.Task[None]) -> None:
            del self._live[request.id]
            if task.cancelled():  # it waited for a handle, or was about to: nothing had begun
                self._end(request, collector, timer)

        live.task = asyncio.create_task(self._serve(request, live, collector, timer))
        live.task.add_done_callback(ended)
        return collector

    async def _serve(self, request: TokenRequest, live: _Live, collector: DeltaCollector, timer: Timer) -> None:
        """Run one request from its handle to its end."""
        # After a sleep LMDeploy has another pool.
        pool = self._engine.session_mgr.request_handle_pool
        handle = await pool.get()
        try:
            ended = await self._compute(request, live, handle, collector, timer)
            if not ended:
                if not live.aborted:
                    raise PluginError("LMDeploy ended a request without saying so")
                self._end(request, collector, timer)
        except Exception as error:  # noqa: BLE001 raised in the reader
            collector.fail(_mapped(error))
        finally:
            pool.put(handle)

    def _end(self, request: TokenRequest, collector: DeltaCollector, timer: Timer) -> None:
        delta = outputs.aborted(request)
        timer.saw(delta, None)
        collector.put(delta)

    async def _compute(
        self, request: TokenRequest, live: _Live, handle: Any, collector: DeltaCollector, timer: Timer
    ) -> bool:
        """Everything that a handle does for a request; true if the last delta is out."""
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.prompt_logprobs is not None and self._backend == "pytorch":
            prompt_logprobs = await self._scored(live, handle, request.prompt_token_ids, request.prompt_logprobs)
            if live.aborted:
                return False
        reader = outputs.Reader(
            request,
            self._library.statuses,
            prompt_logprobs=prompt_logprobs,
        )
        wanted = None
        if request.structured is not None:
            wanted = response_format(request.structured, self._library.grammar, backend=self._backend)
        config = requests.generation_config(self._library, request, self._backend, wanted)
        ended = False
        async for output in self._outputs(live, handle, request.prompt_token_ids, config, lora=request.lora):
            if ended:
                continue  # read to its end, so that the handle is free
            if wanted is not None and config.response_format is None:
                raise Failure("LMDeploy dropped the constraint of a request; its log says why")
            delta = await reader.read(output)
            metrics = output.req_metrics
            timer.saw(delta, metrics)
            if self._speculates:
                self._recorder.drafted(metrics)
            ended = live.over = delta.finish is not None
            if delta.token_ids or ended:
                collector.put(delta)
        return ended

    async def _outputs(
        self,
        live: _Live,
        handle: Any,
        token_ids: Sequence[int],
        config: Any,
        *,
        lora: str | None = None,
    ) -> AsyncGenerator[Any]:
        """LMDeploy's outputs of one run."""
        live.session = next(self._sessions)
        generator = handle.async_stream_infer(
            live.session, input_ids=list(token_ids), gen_config=config, adapter_name=lora, stream_output=True
        )
        live.handle = handle
        try:
            async for output in generator:
                yield output
        finally:
            live.handle = None
            await generator.aclose()

    async def _scored(
        self, live: _Live, handle: Any, token_ids: Sequence[int], logprobs: int
    ) -> list[TokenLogprobs | None]:
        """Log-probabilities of a text, on the PyTorch backend; meaningless after an abort."""
        rows: list[Any] = []
        async for output in self._outputs(live, handle, token_ids, requests.scoring_config(self._library, logprobs)):
            if output.status not in {self._library.statuses.FINISH, self._library.statuses.CANCEL}:
                raise Failure(f"LMDeploy could not score a text ({output.status.name}); its log says why")
            rows += output.logprobs or []
        return [] if live.aborted else outputs.scored(token_ids, rows, logprobs)

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        if self._closed:
            raise EngineClosed("lmdeploy was closed before it could score")
        name, live = f"score-{next(self._ids)}", _Live()
        self._live[name] = live
        live.task = task = asyncio.create_task(self._score(live, token_ids, logprobs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by a close, and not who waits for it
                raise EngineClosed("lmdeploy was closed before it could score") from None
            with anyio.CancelScope(shield=True):
                await self.abort(name)
            raise
        except Exception as error:
            raise _mapped(error) from error
        finally:
            del self._live[name]

    async def _score(self, live: _Live, token_ids: Sequence[int], logprobs: int) -> Score:
        pool = self._engine.session_mgr.request_handle_pool
        handle = await pool.get()
        try:
            if self._backend == "pytorch":
                entries = await self._scored(live, handle, token_ids, logprobs)
            else:
                entries = await self._scored_by_logits(live, handle, token_ids, logprobs)
        finally:
            pool.put(handle)
        if live.aborted:
            raise EngineClosed("lmdeploy was closed while it scored")
        return Score(list(token_ids), entries)

    async def _scored_by_logits(
        self, live: _Live, handle: Any, token_ids: Sequence[int], logprobs: int
    ) -> list[TokenLogprobs | None]:
        # TurboMind always generates a token, for which a full context has no room. The logits that predict the last
        # one are those of the token before it: so it is left out of the prompt.
        *prompt, last = token_ids
        request = TokenRequest(
            id="",
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0),
            max_tokens=1,
            prompt_logprobs=logprobs,
        )
        requests.check(request, self._backend, vocab_size=self._info.vocab_size, greedy_only=False)
        rows: Any = None
        config = requests.generation_config(self._library, request, self._backend, None)
        async for output in self._outputs(live, handle, prompt, config):
            rows = output.logits if output.logits is not None else rows
        if live.aborted:
            return []
        if rows is None or len(rows) < len(prompt):
            given = "no logits" if rows is None else f"{len(rows)} rows of logits"
            raise Failure(f"LMDeploy returned {given} for {len(prompt)} tokens")
        return [None, *await asyncio.to_thread(row_logprobs, rows[: len(prompt)], [*prompt[1:], last], logprobs)]

    async def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is None or live.task is None:
            return
        await self._cancel(live)
        # LMDeploy answers with a last output: once that is read, the request is gone from it.
        await asyncio.wait([live.task])

    async def _cancel(self, live: _Live) -> None:
        live.aborted = True
        if live.handle is not None:
            await live.handle.async_cancel(live.session)
        elif live.task is not None and live.session < 0:
            live.task.cancel()

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        live = sum(not each.over for each in self._live.values())
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
        live = list(self._live.values())
        for each in live:
            await self._cancel(each)
        tasks = [each.task for each in live if each.task is not None]
        if tasks:
            # An engine that is gone answers no more; its end is what was wanted anyway.
            await asyncio.wait(tasks, timeout=_LAST_OUTPUTS)
        for task in tasks:
            task.cancel()
        await stop(self._running)


def _mapped(error: Exception) -> Exception:
    """What is raised for what LMDeploy raised."""
    mapped = request_error(error)
    if mapped is None or mapped is error:
        return error
    mapped.__cause__ = error
    return mapped
