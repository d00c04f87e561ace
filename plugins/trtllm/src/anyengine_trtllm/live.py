"""The requests that TensorRT-LLM works on for us, each read by a task of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyengine.backend import DeltaCollector
from anyengine.errors import PluginError

from anyengine_trtllm import outputs
from anyengine_trtllm.errors import mapped
from anyengine_trtllm.stats import Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.backend import TokenDelta, TokenRequest
    from anyengine.errors import EngineDied

    from anyengine_trtllm.stats import Recorder

__all__ = ["LiveRequests"]

#: Seconds that the last outputs of aborted requests may take when the engine is closed.
_LAST_OUTPUTS = 5.0
#: Seconds that the last output of an aborted request may take that gave none yet. What still waits for a place when it
#: is aborted is dropped by the executor, and no answer comes (``update_waiting_queue``); else it comes with the next
#: iteration.
_UNANSWERED = 1.0


@dataclass(slots=True, eq=False)
class _Live:
    """A request that has not ended.

    Attributes:
        result: its ``RequestOutput``.
        task: reads it.
        begun: whether there was an output.
        aborted: whether the executor was told to end it.
    """

    result: Any
    task: asyncio.Task[None] | None = None
    begun: bool = False
    aborted: bool = False

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.result.abort()


class LiveRequests:
    """Begins, aborts and ends requests.

    Each result is read to its end: a slow reader of ours holds nothing up, and costs memory for its tokens only.

    Args:
        recorder: counts what goes by.
        cached_tokens: whether the engine counts them.
    """

    def __init__(self, recorder: Recorder, *, cached_tokens: bool) -> None:
        self._recorder = recorder
        self._cached_tokens = cached_tokens
        self._live: dict[str, _Live] = {}
        self._closed = False
        self._gone: EngineDied | None = None

    def __len__(self) -> int:
        return len(self._live)

    def begin(self, request: TokenRequest, send: Callable[[], Any], *, streaming: bool) -> DeltaCollector:
        """Hand a request over.

        Args:
            request: what :meth:`abort` names by its id.
            send: gives its ``RequestOutput``; what it raises is raised in the reader, as the contract asks.
            streaming: whether outputs come step by step.
        """
        collector = DeltaCollector()
        if self._closed:
            collector.put(outputs.aborted(request))
            return collector
        if self._gone is not None:
            collector.fail(self._gone)
            return collector
        timer = Timer(self._recorder)
        try:
            result = send()
        except Exception as error:  # noqa: BLE001 raised in the reader
            collector.fail(mapped(error, request))
            return collector
        live = self._live[request.id] = _Live(result)
        live.task = asyncio.create_task(self._read(request, live, collector, timer, streaming=streaming))
        return collector

    async def _read(
        self, request: TokenRequest, live: _Live, collector: DeltaCollector, timer: Timer, *, streaming: bool
    ) -> None:
        reader = outputs.Reader(request, cached_tokens=self._cached_tokens)
        ended = False
        try:
            if streaming:
                async for step in live.result:
                    live.begun = True
                    ended = _take(reader.read(step), request, timer, collector, timed=True)
            else:
                # Log-probabilities of a long text take a while.
                delta = await asyncio.to_thread(reader.read, await live.result.aresult())
                ended = _take(delta, request, timer, collector, timed=False)
            if not ended:
                raise PluginError("TensorRT-LLM ended a request without a finish reason")
        except asyncio.CancelledError:
            if self._gone is None:
                _take(outputs.aborted(request), request, timer, collector, timed=False)
            else:
                collector.fail(self._gone)
            raise
        except Exception as error:  # noqa: BLE001 raised in the reader
            collector.fail(mapped(error, request))
        finally:
            self._live.pop(request.id, None)
            if not ended and not live.result.finished and self._gone is None:
                live.abort()

    async def abort(self, request_id: str) -> None:
        """End a request; it is gone from the executor when this returns."""
        if request_id in self._live:
            live = self._live[request_id]
            live.abort()
            # The executor answers with a last output: once that is read, the request is gone from it.
            await self._last_outputs([live])

    async def _last_outputs(self, aborted: list[_Live], timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for them, and end the reading of those that do not come.

        Args:
            aborted: requests that were aborted.
            timeout: for those that had an output before.
        """
        for waiting, most in (
            ([live.task for live in aborted if live.task and not live.begun], _UNANSWERED),
            ([live.task for live in aborted if live.task and live.begun], timeout),
        ):
            if waiting:
                _, late = await asyncio.wait(waiting, timeout=most)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late)

    def died(self, error: EngineDied) -> None:
        """Fail all, now and later: nobody answers any more."""
        self._gone = error
        for live in self._live.values():
            if live.task is not None:
                live.task.cancel()

    async def close(self) -> None:
        """End all, and begin none any more."""
        self._closed = True
        aborted = list(self._live.values())
        if self._gone is None:
            for live in aborted:
                live.abort()
        # An executor that is gone answers no more; its end is what was wanted anyway.
        await self._last_outputs(aborted, _LAST_OUTPUTS)


def _take(delta: TokenDelta, request: TokenRequest, timer: Timer, collector: DeltaCollector, *, timed: bool) -> bool:
    """Count a delta and hand it on; true if it is the last one."""
    timer.saw(delta, prompt_tokens=len(request.prompt_token_ids), timed=timed)
    finish = delta.finish
    if delta.token_ids or finish is not None:
        collector.put(delta)
    return finish is not None
