"""Running requests on LMDeploy's handles, each of which computes one at a time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from anyengine.backend import DeltaCollector, TokenRequest
from anyengine.backend.cancellation import despite_cancellation
from anyengine.backend.logits import row_logprobs
from anyengine.errors import EngineClosed, Failure, Misuse, PluginError
from anyengine.outputs import Score
from anyengine.request import SamplingParams

from anyengine_lmdeploy import outputs
from anyengine_lmdeploy import request as requests
from anyengine_lmdeploy.errors import request_error
from anyengine_lmdeploy.prefills import Prefills
from anyengine_lmdeploy.stats import Recorder, Timer
from anyengine_lmdeploy.structured import response_format

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from anyengine.outputs import TokenLogprobs

    from anyengine_lmdeploy.options import BackendName
    from anyengine_lmdeploy.startup import Running

__all__ = ["Requests"]

#: Seconds that the last outputs of aborted requests may take when the engine is closed.
_LAST_OUTPUTS = 5.0


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

    async def cancel(self) -> None:
        """End it; its task ends when LMDeploy has answered."""
        self.aborted = True
        if self.handle is not None:
            await self.handle.async_cancel(self.session)
        elif self.task is not None and self.session < 0:  # it waits for a handle
            self.task.cancel()


class Requests:
    """Everything that an engine is asked to compute; on one event loop.

    Args:
        running: the engine.
        recorder: hears of every output.
        vocab_size: of the model.
    """

    def __init__(self, running: Running, recorder: Recorder, vocab_size: int) -> None:
        self._engine = running.engine
        self._library = running.library
        self._backend: BackendName = running.backend
        self._speculates = running.arguments.speculative is not None
        self._recorder = recorder
        self._vocab_size = vocab_size
        self._sessions = count(1)
        self._scores = count()
        self._live: dict[str, _Live] = {}
        self._prefills = Prefills()
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Requests whose last delta is not out."""
        return sum(not live.over for live in self._live.values())

    def submit(self, request: TokenRequest, *, streaming: bool) -> DeltaCollector:
        """Begin a request; its deltas come through what is returned.

        Args:
            request: what to generate.
            streaming: tell LMDeploy that every token is wanted when it is made. TurboMind then wakes this process for
                each; the engine in PyTorch always does.
        """
        collector = DeltaCollector()
        if self._closed:
            collector.put(outputs.aborted(request))
            return collector
        live = self._live[request.id] = _Live()
        timer = Timer(self._recorder, len(request.prompt_token_ids))

        def end(task: asyncio.Task[bool]) -> None:
            del self._live[request.id]
            if task.cancelled() or not task.result():
                # Cancelled while it waited for a handle, or aborted before it computed.
                delta = outputs.aborted(request)
                timer.saw(delta, None)
                collector.put(delta)

        live.task = asyncio.create_task(self._serve(request, live, collector, timer, streaming=streaming))
        live.task.add_done_callback(end)
        return collector

    async def _serve(
        self, request: TokenRequest, live: _Live, collector: DeltaCollector, timer: Timer, *, streaming: bool
    ) -> bool:
        """Run one request from its handle to its end; false if nothing has told the reader of its end."""
        try:
            async with self._handle() as handle:
                ended = await self._compute(request, live, handle, collector, timer, streaming=streaming)
                if not ended and not live.aborted:
                    raise PluginError("LMDeploy ended a request without saying so")
                return ended
        except Exception as error:  # noqa: BLE001 raised in the reader
            collector.fail(_mapped(error))
            return True

    @asynccontextmanager
    async def _handle(self) -> AsyncGenerator[Any]:
        if self._engine.is_sleeping:
            # LMDeploy would answer as if the caller had ended the request.
            raise Misuse("lmdeploy sleeps; call wake() before it is asked anything")
        # After a sleep LMDeploy has another pool; a handle goes back to where it came from.
        pool = self._engine.session_mgr.request_handle_pool
        handle = await pool.get()
        try:
            yield handle
        finally:
            pool.put(handle)

    async def _compute(
        self,
        request: TokenRequest,
        live: _Live,
        handle: Any,
        collector: DeltaCollector,
        timer: Timer,
        *,
        streaming: bool,
    ) -> bool:
        """Everything that a handle does for a request; true if the last delta is out."""
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.prompt_logprobs is not None and self._backend == "pytorch":
            prompt_logprobs = await self._scored(live, handle, request.prompt_token_ids, request.prompt_logprobs)
        reader = outputs.Reader(request, self._library.statuses, prompt_logprobs)
        constraint = None
        if request.structured is not None:
            constraint = response_format(request.structured, self._library.grammar, backend=self._backend)
        config = requests.generation_config(self._library, request, self._backend, constraint)
        async with self._prefills.beginning() as begun:

            def at_first() -> None:
                begun()
                if constraint is not None and config.response_format is None:
                    raise Failure("LMDeploy dropped the constraint of a request; its log says why")

            if live.aborted:
                return False
            async with self._run(
                live, handle, request.prompt_token_ids, config, lora=request.lora, streaming=streaming
            ) as run:
                await self._read(run, reader, live, collector, timer, at_first)
        return live.over

    async def _read(
        self,
        run: AsyncIterator[Any],
        reader: outputs.Reader,
        live: _Live,
        collector: DeltaCollector,
        timer: Timer,
        at_first: Callable[[], None],
    ) -> None:
        """Read a run to its end, so that its handle is free. Nothing else stands between LMDeploy's generator and this
        loop: it turns once for every token.
        """
        first = True
        async for output in run:
            if first:
                first = False
                at_first()
            if live.over:
                continue
            delta = reader.plain(output) or await reader.read(output)
            timer.saw(delta, output.req_metrics)
            if self._speculates:
                self._recorder.drafted(output.req_metrics)
            live.over = delta.finish is not None
            if delta.token_ids or live.over:
                collector.put(delta)

    @asynccontextmanager
    async def _run(
        self,
        live: _Live,
        handle: Any,
        token_ids: Sequence[int],
        config: Any,
        *,
        lora: str | None = None,
        streaming: bool = False,
    ) -> AsyncGenerator[Any]:
        """LMDeploy's outputs of one run. When this is left, the handle computes nothing more."""
        live.session = next(self._sessions)
        run = handle.async_stream_infer(
            live.session, input_ids=list(token_ids), gen_config=config, adapter_name=lora, stream_output=streaming
        )
        live.handle = handle
        try:
            yield run
        finally:
            live.handle = None
            await run.aclose()

    # -- scores -----------------------------------------------------------------------------------

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        """Teacher-forced log-probabilities."""
        if self._closed:
            raise EngineClosed("lmdeploy was closed before it could score")
        name, live = f"score-{next(self._scores)}", _Live()
        self._live[name] = live
        live.task = task = asyncio.create_task(self._score(live, token_ids, logprobs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by a close, and not who waits for it
                raise EngineClosed("lmdeploy was closed before it could score") from None
            try:
                await despite_cancellation(self.abort(name))
            finally:
                if task.done() and not task.cancelled():
                    task.exception()  # nobody asks for it any more
            raise
        except Exception as error:
            raise _mapped(error) from error
        finally:
            del self._live[name]

    async def _score(self, live: _Live, token_ids: Sequence[int], logprobs: int) -> Score:
        async with self._handle() as handle:
            by = self._scored if self._backend == "pytorch" else self._scored_by_logits
            entries = await by(live, handle, token_ids, logprobs)
        if live.aborted:
            raise EngineClosed("lmdeploy was closed while it scored")
        return Score(list(token_ids), entries)

    async def _scored(
        self, live: _Live, handle: Any, token_ids: Sequence[int], logprobs: int
    ) -> list[TokenLogprobs | None]:
        """By LMDeploy itself, on the PyTorch backend; meaningless after an abort."""
        rows: list[Any] = []
        wanted = {self._library.statuses.FINISH, self._library.statuses.CANCEL}
        config = requests.scoring_config(self._library, logprobs)
        async with self._prefills.scoring(), self._run(live, handle, token_ids, config) as run:
            async for output in run:
                if output.status not in wanted:
                    raise Failure(f"LMDeploy could not score a text ({output.status.name}); its log says why")
                rows += output.logprobs or []
        return [] if live.aborted else outputs.scored(token_ids, rows, logprobs)

    async def _scored_by_logits(
        self, live: _Live, handle: Any, token_ids: Sequence[int], logprobs: int
    ) -> list[TokenLogprobs | None]:
        """From TurboMind's logits of the text."""
        # It always generates a token, for which a full context has no room. The logits that predict the last one are
        # those of the token before it: so it is left out of the prompt.
        *prompt, last = token_ids
        request = TokenRequest(
            id="",
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0),
            max_tokens=1,
            prompt_logprobs=logprobs,
        )
        requests.check(request, self._backend, vocab_size=self._vocab_size, greedy_only=False)
        rows: Any = None
        config = requests.generation_config(self._library, request, self._backend, None)
        async with self._run(live, handle, prompt, config) as run:
            async for output in run:
                rows = output.logits if output.logits is not None else rows
        if live.aborted:
            return []
        if rows is None or len(rows) < len(prompt):
            given = "no logits" if rows is None else f"{len(rows)} rows of logits"
            raise Failure(f"LMDeploy returned {given} for {len(prompt)} tokens")
        return [None, *await asyncio.to_thread(row_logprobs, rows[: len(prompt)], [*prompt[1:], last], logprobs)]

    # -- their end --------------------------------------------------------------------------------

    async def abort(self, request_id: str) -> None:
        """End a request; it is gone from LMDeploy when this returns. Idempotent."""
        live = self._live.get(request_id)
        if live is None or live.task is None:
            return
        await live.cancel()
        # LMDeploy answers with a last output, and is read to its end.
        await asyncio.wait([live.task])

    async def close(self) -> None:
        """End all requests, and take no more."""
        self._closed = True
        live = list(self._live.values())
        for each in live:
            await each.cancel()
        tasks = [each.task for each in live if each.task is not None]
        if tasks:
            # An engine that is gone answers no more; its end is what was wanted anyway.
            await asyncio.wait(tasks, timeout=_LAST_OUTPUTS)
        for task in tasks:
            task.cancel()


def _mapped(error: Exception) -> Exception:
    """What is raised for what LMDeploy raised."""
    mapped = request_error(error)
    if mapped is None or mapped is error:
        return error
    mapped.__cause__ = error
    return mapped
