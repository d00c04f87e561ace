"""The worker's side of the protocol: calls in, a session behind, answers out."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
from msgspec import Raw

from anyengine.errors import AnyEngineError, EngineClosed, InvalidRequest
from anyengine.worker.errors import encode_error
from anyengine.worker.heartbeat import INTERVAL
from anyengine.worker.outbox import Outbox
from anyengine.worker.protocol import (
    PROTOCOL,
    Call,
    Cancel,
    Cancelled,
    End,
    Error,
    FrameReader,
    Hello,
    Progress,
    Result,
    encode,
)
from anyengine.worker.session import METHODS, Session, unmapped
from anyengine.worker.unsendable import UNSENDABLE, unsendable

if TYPE_CHECKING:
    from anyengine.runtime.base import ChunkStream
    from anyengine.worker.heartbeat import ControlThread

__all__ = ["Server"]

#: Seconds between two questions to an engine that has nothing to do.
_IDLE_SECONDS = 30.0
#: Seconds between two messages of how far a call has come.
_PROGRESS_SECONDS = 0.1
#: Seconds that an engine is given to close when the application has gone without a word.
_CLOSE_SECONDS = 5.0


class Server(asyncio.Protocol):
    """Serves one application over one connection.

    Attributes:
        done: done when the connection has ended and the engine is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, control: ControlThread) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._control = control
        self._session = Session(self._progress)
        self._progressed = 0.0
        self._reader = FrameReader(FrameReader.QUESTIONS)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._pumps: dict[int, asyncio.Task[None]] = {}
        self._kept: set[asyncio.Task[None]] = set()
        self._outbox: Outbox
        self._transport: asyncio.Transport

    # -- the connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 what asyncio gives to a stream protocol
        self._transport = transport
        self._outbox = Outbox(self._loop, transport, self._failed)

    def greet(self, hello: Hello) -> None:
        """Send the first message."""
        self._outbox.send(hello)

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except ValueError as error:
            refusal = InvalidRequest(f"this is no frame of the worker protocol {PROTOCOL}: {error}")
            self._outbox.send(Error(0, encode_error(refusal)))
            self._loop.call_soon(self._transport.close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 the protocol's signature
        self._keep(self._wind_up())

    async def _wind_up(self) -> None:
        tasks = [*self._calls.values(), *self._pumps.values(), *self._kept - {asyncio.current_task()}]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._session.close(0)
        if not self.done.done():
            self.done.set_result(None)

    def _keep(self, work: Any) -> None:
        """Run something beside, holding on to it (the loop itself does not)."""
        task = self._loop.create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    # -- messages ---------------------------------------------------------------------------------

    def _take(self, message: Hello | Call | Cancel) -> None:
        if isinstance(message, Call):
            if message.method == "read":  # the hot path: no task but the pump itself
                self._read(message)
                return
            task = self._loop.create_task(self._answer(message))
            self._calls[message.id or -id(task)] = task
            task.add_done_callback(lambda task: self._answered(message.id or -id(task), task))
        elif isinstance(message, Cancel):
            self._cancel(message.id)
        elif message.protocol[0] != PROTOCOL[0]:
            self._transport.close()  # the application knows our version, and says what to do

    async def _answer(self, call: Call) -> None:
        try:
            if call.method not in METHODS:
                raise InvalidRequest(f"method: the worker has no {call.method!r}", field="method")
            value = await getattr(self._session, call.method)(call.id, **call.arguments)
            answer: Result | Error = Result(call.id, _sendable(value))
            if call.method == "load":
                self._keep(self._watch())
        except AnyEngineError as error:
            answer = Error(call.id, encode_error(error))
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            failure = unmapped(error, call.method)
            failure.__cause__ = error
            answer = Error(call.id, encode_error(failure))
        if call.id:
            self._outbox.send(answer)

    def _answered(self, key: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(key, None)
        if task.cancelled() and key > 0:
            self._outbox.send(Cancelled(key))

    def _cancel(self, id_: int) -> None:
        call = self._calls.get(id_)
        # One that is done has answered already, also while it still stands among the calls.
        if call is not None and call.cancel():
            return
        if id_ in self._session.streams:
            self._keep(self._leave(id_))

    def _progress(self, id_: int, done: int, total: int) -> None:
        """Tell how far a call has come; from any thread, and not more often than somebody looks."""
        if done < total and monotonic() - self._progressed < _PROGRESS_SECONDS:
            return
        self._progressed = monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there
            self._loop.call_soon_threadsafe(self._outbox.send, Progress(id_, int(done), int(total)))

    # -- streams ----------------------------------------------------------------------------------

    def _read(self, call: Call) -> None:
        stream = call.arguments.get("stream")
        if stream in self._session.streams and stream not in self._pumps:
            self._pumps[stream] = self._loop.create_task(self._pump(stream))

    async def _pump(self, id_: int) -> None:
        outbox = self._outbox
        try:
            async for chunk in self._session.streams[id_]:
                outbox.put(id_, chunk)
        except AnyEngineError as error:
            outbox.send(Error(id_, encode_error(error)))
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            failure = unmapped(error, "stream")
            failure.__cause__ = error
            outbox.send(Error(id_, encode_error(failure)))
        else:
            outbox.send(End(id_))
        # Not where it was cancelled: `_leave` still needs them.
        self._session.streams.pop(id_, None)
        self._pumps.pop(id_, None)

    async def _leave(self, id_: int) -> None:
        """End a stream that is not read any more."""
        await self._end_pump(id_)
        stream = self._session.streams.pop(id_, None)
        if stream is None:  # it ended meanwhile, and has said so
            return
        self._outbox.drop(id_)
        answer: Cancelled | Error = Cancelled(id_)
        try:
            await stream.aclose()
        except AnyEngineError as error:
            answer = Error(id_, encode_error(error))
        self._outbox.send(answer)

    async def _end_pump(self, id_: int) -> None:
        pump = self._pumps.get(id_)
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
            self._pumps.pop(id_, None)

    def _failed(self, id_: int) -> None:
        """End a stream whose chunks cannot be sent; its reader was told."""
        stream = self._session.streams.pop(id_, None)  # at once: a `cancel` comes too late now
        if stream is not None:
            pump = self._pumps.get(id_)
            if pump is not None:
                pump.cancel()  # at once: nothing may be sent after the error
            self._keep(self._release(id_, stream))

    async def _release(self, id_: int, stream: ChunkStream) -> None:
        await self._end_pump(id_)
        with contextlib.suppress(AnyEngineError):
            await stream.aclose()

    # -- signs of life ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Ask the engine now and then whether it works; the control thread tells how long it has not answered.

        Seldom while nothing runs: some engines spin for seconds after each question.
        """
        since = 0.0
        while True:
            # The loop runs, and no question is open.
            self._control.answered = monotonic()
            await anyio.sleep(INTERVAL)
            since += INTERVAL
            if since < (self._session.ask_every if self._session.busy else _IDLE_SECONDS):
                continue
            since = 0.0
            try:
                await self._session.health(0)
            except EngineClosed:
                return
            except AnyEngineError as error:
                self._control.fail(error)
                return


def _sendable(value: object) -> Raw:
    """The value of an answer, encoded.

    Raises:
        PluginError: there is something in it that has no place in msgpack; names it.
    """
    try:
        return Raw(encode(value))
    except UNSENDABLE as error:
        raise unsendable(value, error) from error
