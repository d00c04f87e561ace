"""A one-slot mailbox between an engine's step and the reader of one stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyengine.backend.types import TokenDelta

__all__ = ["DeltaCollector"]


class DeltaCollector:
    """Async iterator of deltas that merges what its reader has not fetched yet.

    A slow reader so costs memory for its tokens, never a queue of objects, and gets one larger delta instead of many.
    One reader only. ``put`` and ``fail`` must run on the reader's event loop (an engine thread calls
    ``loop.call_soon_threadsafe`` once a step, for all its streams).
    """

    __slots__ = ("_delta", "_ended", "_error", "_finished", "_waiter")

    def __init__(self) -> None:
        self._delta: TokenDelta | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._finished = False  # the last delta was put
        self._ended = False  # and read

    def put(self, delta: TokenDelta) -> None:
        """Hand over a delta; merged with one that still lies there. Its lists are taken over.

        What comes after a finish is dropped: an engine's step may still be under way when a request is aborted.
        """
        if self._finished:
            return
        self._finished = delta.finish is not None
        waiting = self._delta
        if waiting is None:
            self._delta = delta
        else:
            waiting.token_ids.extend(delta.token_ids)
            if delta.logprobs is not None:
                if waiting.logprobs is None:
                    waiting.logprobs = delta.logprobs
                else:  # in place, or a long answer that nobody reads would cost its length squared
                    waiting.logprobs.extend(delta.logprobs)
            waiting.finish = delta.finish
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Raise ``error`` in the reader, after what was put before."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> DeltaCollector:
        return self

    async def __anext__(self) -> TokenDelta:
        while self._delta is None:
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                self._ended = True
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta, self._delta = self._delta, None
        self._ended = delta.finish is not None
        return delta
