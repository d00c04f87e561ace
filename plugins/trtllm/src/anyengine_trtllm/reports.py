"""Reading what TensorRT-LLM reports of each of its iterations, and of its key-value cache, as it comes.

It keeps a thousand iterations (``max_stats_len``) at one end and all of them at the other, so they are read while
requests run, whether somebody asks for statistics or not: else counts would be too low, or memory would go.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyengine_trtllm.errors import mapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from anyengine_trtllm.stats import Recorder

__all__ = ["Reports"]

#: Seconds between two readings while requests run.
_INTERVAL = 0.5
#: Seconds that a reading waits for iterations that were not reported yet. TensorRT-LLM says that there are no more only
#: by letting its time run out.
_WAIT = 0.02
#: Seconds that a reading may take: of an engine that is busy there is always another iteration.
_LONGEST = 0.1
#: Seconds that the first iteration of an engine may take until it is reported; its workers send them each tenth.
_FIRST = 10.0


class Reports:
    """Reads into a recorder.

    Args:
        llm: ``LLM``.
        recorder: takes iterations and events in.
        events: whether the cache reports events.
    """

    def __init__(self, llm: Any, recorder: Recorder, *, events: bool) -> None:
        self._llm = llm
        self._recorder = recorder
        self._events = events
        self._reading = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None

    async def first(self) -> Mapping[str, Any] | None:
        """The first iteration that tells of the cache, once a request was handed over; None if none comes in time.

        Neither it nor the events until then are counted.
        """
        end = monotonic() + _FIRST
        while monotonic() < end:
            async with self._reading:
                self._resume("_iter_stats_result")
                found = [iteration async for iteration in self._llm.get_stats_async(timeout=_WAIT)]
                if self._events:
                    self._resume("_iter_kv_events_result")
                    _ = [event async for event in self._llm.get_kv_cache_events_async(timeout=_WAIT)]
            if found and found[-1].get("kvCacheStats"):
                return found[-1]
        return None

    async def read(self) -> None:
        """Take in what came since the last time."""
        async with self._reading:
            try:
                self._resume("_iter_stats_result")
                await _take(self._llm.get_stats_async(timeout=_WAIT), self._recorder.record)
                if self._events:
                    self._resume("_iter_kv_events_result")
                    await _take(self._llm.get_kv_cache_events_async(timeout=_WAIT), self._recorder.record_event)
            except Exception as error:
                raise mapped(error) from error

    def follow(self, live: Callable[[], int]) -> None:
        """Read again and again until no request is live, and once more; call it when one was handed over."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow(live))

    async def _follow(self, live: Callable[[], int]) -> None:
        ended = False
        while not ended:
            await asyncio.sleep(_INTERVAL)
            ended = not live()
            try:
                await self.read()
            except Exception:  # noqa: BLE001 told to whom asks for statistics
                return

    def close(self) -> None:
        """Read no more."""
        if self._following is not None:
            self._following.cancel()

    def _resume(self, name: str) -> None:
        """Have reports that ran dry go on.

        Once its time has run out TensorRT-LLM gives no iterations any more until another request is handed over,
        however long those that run still take. There is no public way to tell it otherwise.
        """
        result = getattr(getattr(self._llm, "_executor", None), name, None)
        if result is not None:
            result.mark_undone()


async def _take(reported: AsyncIterator[Mapping[str, Any]], record: Callable[[Mapping[str, Any]], None]) -> None:
    end = monotonic() + _LONGEST
    async for each in reported:
        record(each)
        if monotonic() > end:
            return
