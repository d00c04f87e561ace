"""The application's end of the connection to a worker: calls out, answers and chunks in."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from msgspec import Raw, ValidationError

from anyengine._concurrency import despite_cancellation
from anyengine.errors import AnyEngineError, InvalidRequest, PluginError
from anyengine.worker.errors import decode_error
from anyengine.worker.mailbox import Mailbox
from anyengine.worker.protocol import (
    MOST_WAITING,
    Call,
    Cancel,
    Cancelled,
    Chunks,
    Error,
    FrameReader,
    Hello,
    Progress,
    Result,
    decode,
    encode,
    frame,
)
from anyengine.worker.unsendable import UNSENDABLE, path_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.worker.protocol import Answer

__all__ = ["Connection"]

#: Seconds that a worker which has hung up is given to end, so that its end is the error; a busy machine needs some.
_EXIT_SECONDS = 5.0


class Connection(asyncio.Protocol):
    """Calls a worker.

    Attributes:
        hello: done with the worker's first message.
        closed: done when the socket is closed.
        error: why nothing can be called any more; None while it can.
        progress: called with (done, total) steps of a call that takes long.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lost: Callable[[], AnyEngineError], exited: asyncio.Future[None]
    ) -> None:
        """Wait for the worker's hello.

        Args:
            loop: the event loop.
            lost: gives the error to raise when the connection ends unasked.
            exited: done when the process has ended, and all is known of its end.
        """
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.error: AnyEngineError | None = None
        self.progress: Callable[[int, int], None] | None = None
        self._loop = loop
        self._lost = lost
        self._exited = exited
        self._ids = count(1)
        self._reader = FrameReader(FrameReader.ANSWERS)
        self._calls: dict[int, asyncio.Future[Result | None]] = {}
        self._streams: dict[int, Mailbox] = {}
        self._outgoing: list[object] = []
        self._transport: asyncio.Transport

    # -- the connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 what asyncio gives to a stream protocol
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except ValueError as error:
            failure = self._lost()
            failure.add_note(f"it sent what is no frame of the worker protocol: {error}")
            self.fail(failure)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 the protocol's signature
        self.closed.set_result(None)
        if self.error is None:
            # The process is ending, and who watches it is about to tell its exit status and its last words.
            self._exited.add_done_callback(self._fail_lost)
            self._loop.call_later(_EXIT_SECONDS, self._fail_lost)

    def _fail_lost(self, _exited: object = None) -> None:
        if self.error is None:
            self.fail(self._lost())

    def fail(self, error: AnyEngineError) -> None:
        """End everything that is under way, and whatever is called later, with this error."""
        self.error = error
        calls, self._calls = self._calls, {}
        streams, self._streams = self._streams, {}
        for future in (*calls.values(), self.hello):
            if not future.done():
                future.set_exception(_again(error))
                future.exception()  # it may be that nobody waits any more
        for mailbox in streams.values():
            mailbox.end(_again(error))
        self._transport.abort()

    # -- messages ---------------------------------------------------------------------------------

    def _take(self, message: Answer) -> None:  # noqa: C901 one branch a message
        if isinstance(message, Chunks):
            streams = self._streams
            for item in message.items:
                mailbox = streams.get(item.id)
                if mailbox is not None:
                    mailbox.put(item)
        elif isinstance(message, Hello):
            if not self.hello.done():
                self.hello.set_result(message)
        elif isinstance(message, Result):
            self._settle(message.id, result=message)
        elif isinstance(message, Progress):
            if self.progress is not None:
                self.progress(message.done, message.total)
        elif isinstance(message, Error):
            error = decode_error(message.error)
            if message.id == 0:
                self.fail(error)
            elif not self._settle(message.id, error=error):
                self._end(message.id, error)
        elif not (isinstance(message, Cancelled) and self._settle(message.id)):
            self._end(message.id, None)

    def _settle(self, id_: int, *, result: Result | None = None, error: AnyEngineError | None = None) -> bool:
        future = self._calls.pop(id_, None)
        if future is None:
            return False
        if not future.done():
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
        return True

    def _end(self, id_: int, error: AnyEngineError | None) -> None:
        mailbox = self._streams.pop(id_, None)
        if mailbox is not None:
            mailbox.end(error)

    def send(self, message: object) -> None:
        """Send a message, in a frame with others that are sent in this round of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)
        if len(self._outgoing) == MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if messages and not self._transport.is_closing():
            self._transport.write(frame(messages))

    # -- calls ------------------------------------------------------------------------------------

    def tell(self, method: str, **arguments: Any) -> None:
        """Call without an answer; nothing happens where the worker is gone."""
        if self.error is None:
            self.send(Call(0, method, arguments))

    async def call(self, method: str, kind: Any = None, **arguments: Any) -> tuple[int, Any]:
        """Call, and wait for the answer. Cancelling ends the call in the worker first.

        Args:
            method: of the protocol.
            kind: type of the answer.
            arguments: of the method.

        Returns:
            The call's id, by which the worker knows what it has kept, and the answer.
        """
        self.check()
        id_ = next(self._ids)
        message = _sendable(Call(id_, method, arguments))
        future: asyncio.Future[Result | None] = self._loop.create_future()
        self._calls[id_] = future
        self.send(message)
        try:
            result = await future
        except asyncio.CancelledError:
            await despite_cancellation(self._cancelled(id_, method))
            raise
        if result is None:
            raise PluginError(f"the worker ended {method} by itself, unasked")
        if kind is None:
            return id_, None
        try:
            return id_, decode(result.value, kind)
        except ValidationError as error:
            raise PluginError(f"{method}: the worker's answer is not what it has to be: {error}") from error

    async def _cancelled(self, id_: int, method: str) -> None:
        """The caller does not want it any more: wait until the worker has let go of it."""
        if self.error is not None:
            return
        future: asyncio.Future[Result | None] = self._loop.create_future()
        if self._calls.pop(id_, None) is not None:
            self._calls[id_] = future
            self.send(Cancel(id_))
            await asyncio.wait([future])
            if future.exception() is not None or future.result() is None:
                return
        # It was done already: what it made is given back.
        if method == "prepare":
            self.tell("forget", prepared=id_)
        elif method == "admit":
            self.tell("leave", admission=id_)
        elif method == "open":
            self.send(Cancel(id_))

    async def open(self, **arguments: Any) -> tuple[int, Mailbox]:
        """Open a stream; nothing comes before it is read."""
        id_, _ = await self.call("open", **arguments)
        self.check()
        mailbox = self._streams[id_] = Mailbox(self._loop)
        return id_, mailbox

    async def leave(self, id_: int, mailbox: Mailbox) -> None:
        """End a stream; when this returns the worker holds nothing of it.

        Raises:
            AnyEngineError: the engine failed to end it.
        """
        if self.error is None and id_ in self._streams:
            self.send(Cancel(id_))
            await mailbox.ended

    def check(self) -> None:
        """Raise if nothing can be called any more."""
        if self.error is not None:
            raise _again(self.error)

    async def close(self, error: AnyEngineError) -> None:
        """Hang up; from now on every call raises this error."""
        self.fail(error)
        await self.closed


def _sendable(message: Call) -> Raw:
    """The message, encoded.

    Raises:
        InvalidRequest: there is something in it that has no place in msgpack; names the field.
    """
    try:
        return Raw(encode(message))
    except UNSENDABLE as error:
        path = path_to(message.arguments)
        field = ".".join(path[1:] if path[:1] == ["request"] else path) or message.method
        reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f"{field}: cannot be sent to the worker: {reason}", field=field) from error


def _again(error: AnyEngineError) -> AnyEngineError:
    """The same error for one more caller: each has its own traceback."""
    cls, message, facts = type(error), error.message, dict(error.__dict__)
    facts.pop("__notes__", None)
    copy = cls.__new__(cls, message)
    Exception.__init__(copy, message)
    copy.__dict__.update(facts)
    for note in getattr(error, "__notes__", ()):
        copy.add_note(note)
    copy.__cause__ = error.__cause__
    return copy
