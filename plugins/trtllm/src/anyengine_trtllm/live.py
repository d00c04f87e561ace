"""The requests that TensorRT-LLM works on for us, each read by a task of its own."""

from __future__ import annotations

import asyncio
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
        self._live: dict[str, tuple[Any, asyncio.Task[None]]] = {}
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
        task = asyncio.create_task(self._read(request, result, collector, timer, streaming=streaming))
        self._live[request.id] = (result, task)
        return collector

    async def _read(
        self, request: TokenRequest, result: Any, collector: DeltaCollector, timer: Timer, *, streaming: bool
    ) -> None:
        reader = outputs.Reader(request, cached_tokens=self._cached_tokens)
        ended = False
        try:
            if streaming:
                async for step in result:
                    ended = _take(reader.read(step), request, timer, collector, timed=True)
            else:
                # Log-probabilities of a long text take a while.
                delta = await asyncio.to_thread(reader.read, await result.aresult())
                ended = _take(delta, request, timer, collector, timed=False)
            if not ended:
                raise PluginError("TensorRT-LLM ended a request without a finish reason")
        except asyncio.CancelledError:
            if self._gone is None:
                collector.put(outputs.aborted(request))
            else:
                collector.fail(self._gone)
            raise
        except Exception as error:  # noqa: BLE001 raised in the reader
            collector.fail(mapped(error, request))
        finally:
            self._live.pop(request.id, None)
            if not ended and not result.finished and self._gone is None:
                result.abort()

    async def abort(self, request_id: str) -> None:
        """End a request; it is gone from the executor when this returns."""
        if request_id not in self._live:
            return
        result, task = self._live[request_id]
        result.abort()
        # The executor answers with a last output: once that is read, the request is gone from it.
        await asyncio.wait([task])

    def died(self, error: EngineDied) -> None:
        """Fail all, now and later: nobody answers any more."""
        self._gone = error
        for _, task in self._live.values():
            task.cancel()

    async def close(self) -> None:
        """End all, and begin none any more."""
        self._closed = True
        live = list(self._live.values())
        if self._gone is None:
            for result, _ in live:
                result.abort()
        if live:
            # An executor that is gone answers no more; its end is what was wanted anyway.
            await asyncio.wait([task for _, task in live], timeout=_LAST_OUTPUTS)
        for _, task in live:
            task.cancel()


def _take(delta: TokenDelta, request: TokenRequest, timer: Timer, collector: DeltaCollector, *, timed: bool) -> bool:
    """Count a delta and hand it on; true if it is the last one."""
    timer.saw(delta, prompt_tokens=len(request.prompt_token_ids), timed=timed)
    finish = delta.finish
    if delta.token_ids or finish is not None:
        collector.put(delta)
    return finish is not None
