"""One pooled HTTP client for a server: JSON in, JSON, text or events out, and errors of ours."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2 as httpx
import msgspec

from anyengine_server.errors import Answer, ErrorMap, MalformedAnswer, answer_error, transport_error
from anyengine_server.sse import EventParser

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from anyengine.errors import AnyEngineError

    from anyengine_server.options import ServerOptions
    from anyengine_server.sse import Event

__all__ = ["EventStream", "ServerClient"]

T = TypeVar("T")

#: Bytes of an answer that is not a stream of events.
MAX_BODY_BYTES = 256 * 2**20
#: Bytes of an answer that says what went wrong.
_MAX_ERROR_BYTES = 2**20
#: Seconds that an idle connection is kept: less than servers keep theirs, so none is used that is just being closed.
_KEEP_IDLE = 2.5
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _socket_options() -> list[tuple[int, int, int]]:
    """The kernel asks the other end whether it is still there: a peer that is gone is noticed within half a minute."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class ServerClient:
    """Speaks to one server.

    As many connections as there are requests; those that are idle are kept for a moment. Made on the event loop that it
    serves. Every method raises errors of anyengine only.

    Args:
        options: where the server is.
        errors: makes errors of its answers; by HTTP status if none is given.
    """

    def __init__(self, options: ServerOptions, errors: ErrorMap = answer_error) -> None:
        self._errors = errors
        self._open = 0
        headers = {"User-Agent": f"anyengine-server/{version('anyengine-server')}", **options.headers}
        if options.token is not None:
            headers["Authorization"] = f"Bearer {options.token}"
        url = httpx.URL(options.url)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_IDLE)
        local = url.host in _LOOPBACK
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(
                connect=options.connect_timeout, read=options.read_timeout, write=options.read_timeout, pool=None
            ),
            # A proxy of the surroundings is for what is far away.
            trust_env=not local,
            transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=_socket_options(), trust_env=not local),
            follow_redirects=False,
        )

    @property
    def open_requests(self) -> int:
        """Requests whose answers are not over yet."""
        return self._open

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: object,
        headers: Mapping[str, str],
        timeout: float | None,  # noqa: ASYNC109 of the socket
    ) -> AsyncGenerator[httpx.Response]:
        content = None if body is None else msgspec.json.encode(body)
        own = {"Content-Type": "application/json", **headers} if content is not None else dict(headers)
        extra: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        self._open += 1
        try:
            async with self._client.stream(method, path, content=content, headers=own, **extra) as response:
                if not response.is_success:
                    raise self._errors(
                        Answer(
                            response.status_code,
                            {name.lower(): value for name, value in response.headers.items()},
                            await _body(response, _MAX_ERROR_BYTES, cut=True),
                            f"{method} {path}",
                        )
                    )
                yield response
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            raise transport_error(error, f"{method} {path}") from error
        finally:
            self._open -= 1

    async def get(self, path: str, *, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 of the socket
        """The body of an answer."""
        async with self._request("GET", path, None, {}, timeout) as response:
            return await _body(response, MAX_BODY_BYTES)

    async def get_json(self, path: str, kind: type[T], *, timeout: float | None = None) -> T:  # noqa: ASYNC109
        """An answer as data of a type that msgspec knows."""
        return _decoded(await self.get(path, timeout=timeout), kind, f"GET {path}")

    async def post_json(
        self,
        path: str,
        body: object,
        kind: type[T],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T:
        """The answer to a body, which is anything that msgspec writes as JSON.

        Args:
            path: behind the server's address.
            body: what is sent.
            kind: type of the answer.
            timeout: seconds for each step (connect, send, wait for bytes), instead of the client's own.

        Raises:
            MalformedAnswer: the answer is none of that type.
            EngineDied, EngineUnresponsive: the server is gone, or silent.
            AnyEngineError: what the map of errors makes of its refusal.
        """
        return _decoded(await self.post(path, body, timeout=timeout), kind, f"POST {path}")

    async def post(self, path: str, body: object, *, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """The bytes of the answer to a body: see :meth:`post_json`."""
        async with self._request("POST", path, body, {}, timeout) as response:
            return await _body(response, MAX_BODY_BYTES)

    @asynccontextmanager
    async def events(self, path: str, body: object) -> AsyncGenerator[EventStream]:
        """The events that a body is answered with. Leaving the context closes the connection.

        Raises:
            AnyEngineError: as :meth:`post_json`, also out of the stream.
        """
        place = f"POST {path}"
        async with self._request("POST", path, body, {"Accept": "text/event-stream"}, None) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise MalformedAnswer(f"{place} answered with {kind or 'an unnamed type'}, not with events")
            stream = EventStream(response, place, self._errors)
            try:
                yield stream
            finally:
                await stream.aclose()

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._client.aclose()


class EventStream:
    """The events of one answer, as an async iterator; it ends where the answer does. One reader only.

    Args:
        response: the answer, begun.
        place: method and path, for messages.
        errors: makes errors of an event that is one.
    """

    __slots__ = ("_errors", "_events", "_parser", "_pieces", "_place")

    def __init__(self, response: httpx.Response, place: str, errors: ErrorMap) -> None:
        self._pieces = response.aiter_bytes()
        self._place = place
        self._errors = errors
        self._parser = EventParser()
        self._events: deque[Event] = deque()

    def error(self, event: Event) -> AnyEngineError:
        """The error for an event that says that something went wrong."""
        return self._errors(Answer(200, {}, event.data, self._place))

    def decoded(self, event: Event, decoder: msgspec.json.Decoder[T]) -> T:
        """The event's data as a type.

        Raises:
            MalformedAnswer: it is none.
        """
        try:
            return decoder.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(event.data, self._place, error) from error

    def cut_off(self) -> MalformedAnswer:
        """The error for a stream that ends before its last event."""
        return MalformedAnswer(f"{self._place}: the server's answer ends before it is complete")

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            piece = await anext(self._pieces, None)
            if piece is None:
                if self._parser.pending:
                    raise self.cut_off()
                raise StopAsyncIteration
            self._events.extend(self._parser.feed(piece))
        return self._events.popleft()

    async def aclose(self) -> None:
        """Read no more."""
        closing = getattr(self._pieces, "aclose", None)
        if closing is not None:
            await closing()


async def _body(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    """The body; where it is too long, its beginning or an error."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > most:
            if cut:
                break
            raise MalformedAnswer(f"{response.url.path} answered with more than {most} bytes")
    return bytes(body)


def _decoded(body: bytes, kind: type[T], place: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(body, place, error) from error


def _malformed(body: bytes, place: str, error: Exception) -> MalformedAnswer:
    shown = body[:120].decode(errors="replace")
    return MalformedAnswer(f"{place} answered with something else than was agreed on: {error}: {shown!r}")
