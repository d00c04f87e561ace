"""What a worker has to say, gathered until the event loop has done its round, and sent in one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.worker.errors import encode_error
from anyengine.worker.pile import Pile
from anyengine.worker.protocol import MOST_WAITING, ChunkItem, Chunks, Error, frame
from anyengine.worker.unsendable import UNSENDABLE, unsendable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from anyengine.outputs import Chunk

__all__ = ["Outbox"]


class Outbox:
    """Sends messages and chunks; chunks of one sequence are merged while the other side does not take them.

    All streams that an engine's step serves so share a frame, and an application that does not read costs memory for
    its tokens only.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, failed: Callable[[int], None]
    ) -> None:
        """Begin with nothing.

        Args:
            loop: the event loop.
            transport: what is written to.
            failed: told the id of what could not be sent. Its error is on the way then, and nothing may follow it.
        """
        self._loop = loop
        self._transport = transport
        self._failed = failed
        self._messages: list[object] = []
        self._chunks: dict[tuple[int, int], ChunkItem | Pile] = {}
        self._scheduled = False
        self._paused = False

    def send(self, message: object) -> None:
        """Send a message, after the chunks that were put before it."""
        self._messages.append(message)
        if len(self._messages) < MOST_WAITING:
            self._schedule()
        else:
            self._flush()

    def put(self, stream: int, chunk: Chunk) -> None:
        """Send a chunk of a stream."""
        key = (stream, chunk.index)
        waiting = self._chunks.get(key)
        if waiting is None:
            self._chunks[key] = ChunkItem(
                stream, chunk.index, chunk.text, chunk.token_ids, chunk.logprobs, chunk.finish
            )
        else:
            if not isinstance(waiting, Pile):
                waiting = self._chunks[key] = Pile(waiting)
            waiting.add(chunk)
        self._schedule()

    def drop(self, stream: int) -> None:
        """Forget what waits of a stream that nobody reads any more."""
        for key in [key for key in self._chunks if key[0] == stream]:
            del self._chunks[key]

    def pause(self) -> None:
        """Hold everything back: the other side is slow."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._paused:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False  # one that is due as well finds nothing, or the next few
        if self._paused or not (self._messages or self._chunks):
            return
        # Chunks first: what ends a stream comes after what it ends.
        messages = [Chunks(self._items()), *self._messages] if self._chunks else self._messages
        self._chunks = {}
        self._messages = []
        try:
            data = frame(messages)
        except UNSENDABLE:
            data = b"".join(self._one_by_one(messages))
        self._transport.write(data)

    def _items(self) -> list[ChunkItem]:
        return [
            ChunkItem(*key, waiting.text, waiting.token_ids, waiting.logprobs, waiting.finish)
            if isinstance(waiting, Pile)
            else waiting
            for key, waiting in self._chunks.items()
        ]

    def _one_by_one(self, messages: list[object]) -> Iterator[bytes]:
        """Each message in a frame of its own, so that what cannot be encoded ends its own request and no other."""
        parts: list[tuple[int, object]] = []
        for message in messages:
            if isinstance(message, Chunks):
                parts += [(item.id, Chunks([item])) for item in message.items]
            else:
                parts.append((getattr(message, "id", 0), message))
        failed: set[int] = set()
        for id_, message in parts:
            if id_ in failed:
                continue  # its end was told
            try:
                yield frame([message])
            except UNSENDABLE as error:
                failed.add(id_)
                what = message.items[0] if isinstance(message, Chunks) else message
                yield frame([Error(id_, encode_error(unsendable(what, error)))])
                self._failed(id_)
