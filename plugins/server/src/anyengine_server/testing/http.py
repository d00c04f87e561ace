"""HTTP/1.1 over asyncio's sockets, by h11; small enough to see what it does on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib
from typing import TYPE_CHECKING, Any, Self

import h11
import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

__all__ = ["Exchange", "SimulatedServer"]

_READ = 2**16


class Exchange:
    """One request and its answer.

    Attributes:
        method: of the request.
        path: of the request, without its query.
        headers: of the request, by lower-case name.
        body: of the request.
        compress: whether the answer is compressed (gzip); set before it begins.
    """

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request) -> None:
        self.method = request.method.decode()
        self.path = request.target.decode().partition("?")[0]
        self.headers = {name.decode(): value.decode() for name, value in request.headers}
        self.body = b""
        self.compress = False
        self._connection = connection
        self._writer = writer
        self._gzip: Any = None

    def json(self) -> Any:
        """The body as data.

        Raises:
            msgspec.DecodeError: it is no JSON.
        """
        return msgspec.json.decode(self.body)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer."""
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        if self.compress:
            self._gzip = zlib.compressobj(wbits=31)
            lines.append((b"content-encoding", b"gzip"))
        lines.append((b"transfer-encoding", b"chunked"))
        self._send(h11.Response(status_code=status, headers=lines))
        await self._writer.drain()

    async def write(self, data: bytes) -> None:
        """A piece of the answer, sent at once; waits while the other end does not take it."""
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        self._send(h11.Data(data=data))
        await self._writer.drain()

    async def end(self) -> None:
        """The end of the answer."""
        if self._gzip is not None:
            self._send(h11.Data(data=self._gzip.flush()))
        self._send(h11.EndOfMessage())
        await self._writer.drain()

    async def reply(self, status: int, data: object = None, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer in JSON; without data an empty one."""
        kind = {} if data is None else {"content-type": "application/json"}
        await self.start(status, kind | dict(headers or {}))
        if data is not None:
            await self.write(msgspec.json.encode(data))
        await self.end()

    async def text(self, status: int, text: str) -> None:
        """A whole answer in plain text."""
        await self.start(status, {"content-type": "text/plain; charset=utf-8"})
        await self.write(text.encode())
        await self.end()

    async def events(self) -> None:
        """Begin an answer of server-sent events."""
        await self.start(200, {"content-type": "text/event-stream", "cache-control": "no-cache"})

    async def event(self, data: object) -> None:
        """One event: bytes as they are, anything else as JSON."""
        content = data if isinstance(data, bytes) else msgspec.json.encode(data)
        await self.write(b"data:" + content + b"\n\n")

    def raw(self, data: bytes) -> None:
        """Bytes on the wire, whatever they break."""
        self._writer.write(data)

    def break_off(self) -> None:
        """Close the connection as a process that was killed does: with a reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if data:
            self._writer.write(data)


class SimulatedServer:
    """Answers requests by a handler, each connection one request after the other.

    A handler whose client goes away is cancelled. An asynchronous context manager.

    Args:
        handler: answers one exchange.
    """

    def __init__(self, handler: Callable[[Exchange], Awaitable[None]], *, port: int = 0) -> None:
        self._handler = handler
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0
        self.errors: list[BaseException] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def open_connections(self) -> int:
        """Connections that stand."""
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening, and break off what is open."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def idle(self, most: int = 0) -> None:
        """Wait until no more than so many connections stand; the test's own timeout bounds it."""
        while len(self._tasks) > most:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 asyncio makes one for each connection
        self.accepted += 1
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, h11.RemoteProtocolError):
            pass  # the client went away
        except asyncio.CancelledError:
            pass  # the server stops
        except Exception as error:  # noqa: BLE001 the test looks at it
            self.errors.append(error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            exchange = await _receive(connection, reader, writer)
            if exchange is None:
                return
            if not await self._answer(exchange, reader):
                return
            if connection.our_state is h11.MUST_CLOSE or writer.is_closing():
                return
            connection.start_next_cycle()

    async def _answer(self, exchange: Exchange, reader: asyncio.StreamReader) -> bool:
        """Whether the answer is complete; the handler is cancelled where its client goes away, or this server stops."""
        answering = asyncio.ensure_future(self._handler(exchange))
        # A client sends nothing before it has its answer: what can be read is the end.
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([answering, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.wait([answering, gone])
            # Also where this server stops: what nobody asks for, asyncio reports to whoever runs then.
            error = None if answering.cancelled() else answering.exception()
            if error is not None and not isinstance(error, OSError):
                self.errors.append(error)
        return error is None and not answering.cancelled()


async def _receive(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Exchange | None:
    """The next request; None where there is none any more."""
    exchange: Exchange | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Request):
            exchange = Exchange(connection, writer, event)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert exchange is not None  # noqa: S101 h11 gives the request first
            exchange.body = bytes(body)
            return exchange
        else:
            return None
