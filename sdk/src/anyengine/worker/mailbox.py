"""What came of one stream, and its reader has not fetched yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.outputs import Chunk
from anyengine.worker.pile import Pile

if TYPE_CHECKING:
    import asyncio

    from anyengine.worker.protocol import ChunkItem

__all__ = ["Mailbox"]


class Mailbox:
    """Merges the chunks of each sequence, so that a slow reader costs memory for its tokens only. One reader."""

    __slots__ = ("_chunks", "_error", "_loop", "_over", "_waiter", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: dict[int, ChunkItem | Pile] = {}
        self._error: BaseException | None = None
        self._over = False
        self._waiter: asyncio.Future[None] | None = None
        #: Done when the worker holds nothing of the stream any more.
        self.ended: asyncio.Future[None] = loop.create_future()

    def put(self, item: ChunkItem) -> None:
        """Hand over what is new of a sequence."""
        waiting = self._chunks.get(item.index)
        if waiting is None:
            self._chunks[item.index] = item
        else:
            if not isinstance(waiting, Pile):
                waiting = self._chunks[item.index] = Pile(waiting)
            waiting.add(item)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come; with an error, the reader gets it after what came before."""
        if not self._over:
            self._over = True
            self._error = error
        if not self.ended.done():
            self.ended.set_result(None)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def drained(self) -> bool:
        """Whether the worker holds nothing of the stream, and nothing lies here."""
        return self.ended.done() and not self._chunks

    async def take(self) -> Chunk:
        """The next chunk.

        Raises:
            StopAsyncIteration: there is none.
        """
        while not self._chunks:
            if self._over:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        index = next(iter(self._chunks))
        found = self._chunks.pop(index)
        return Chunk(found.text, found.token_ids, found.logprobs, index, found.finish)
