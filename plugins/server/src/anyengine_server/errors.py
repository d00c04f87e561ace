"""What goes wrong between us and a server, as errors of anyengine: one map for transport, one for answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx2 as httpx
import msgspec
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineUnresponsive,
    Failure,
    InvalidRequest,
    Overloaded,
)
from msgspec import Struct
from msgspec.structs import replace

__all__ = [
    "Answer",
    "ErrorMap",
    "MalformedAnswer",
    "ServerRefused",
    "answer_error",
    "message_of",
    "retry_after",
    "transport_error",
]

#: Seconds to wait before asking an overloaded server again, where it does not say.
RETRY_AFTER = 1.0
#: Characters of a server's own words in a message.
_WORDS = 500


class MalformedAnswer(Failure):
    """The server sent what is no answer of its kind: broken JSON, a line that is no event, an end in the middle."""


class ServerRefused(Failure):
    """The server does not let us in, or does not have what was asked for (401, 403, 404, 405).

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, *, engine: str | None = None, field: str | None = None, status: int = 0) -> None:
        super().__init__(message, engine=engine, field=field)
        self.status = status


class Answer(Struct, frozen=True):
    """What a server answered where it did not do what was asked.

    Attributes:
        status: of HTTP; 200 for an error within a stream.
        headers: by lower-case name.
        body: the body, or the event.
        place: method and path, for messages.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    place: str

    @property
    def within_stream(self) -> bool:
        """Whether it is an event of a stream that had begun well."""
        return self.status == HTTPStatus.OK

    def json(self) -> Any:
        """The body as data; None if it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def with_own_status(self) -> Answer:
        """Of an event: with the status that it names, as ``code`` or ``error.code``; else the same."""
        if not self.within_stream:
            return self
        try:
            found = msgspec.json.decode(self.body, type=_Named)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self
        code = found.error.code if isinstance(found.error, _Code) else found.code
        return self if code is None else replace(self, status=code)


class _Code(Struct):
    code: int | None = None


class _Named(Struct):
    code: int | None = None
    error: _Code | str | None = None


#: Makes an error of an answer; an engine's own, given to :class:`~anyengine_server.ServerClient`.
ErrorMap = Callable[[Answer], AnyEngineError]


def message_of(answer: Answer) -> str:
    """The server's own words: ``error``, ``error.message``, ``message`` or ``detail`` of JSON, else the text."""
    content: Any = answer.json()
    if isinstance(content, dict):
        found: Any = content  # pyright: ignore[reportUnknownVariableType] any JSON
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]  # pyright: ignore[reportUnknownVariableType] any JSON
        text = found if isinstance(found, str) else str(found)  # pyright: ignore[reportUnknownArgumentType]
    else:
        text = answer.body.decode(errors="replace")
    return " ".join(text.split())[:_WORDS] or "nothing more"


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a ``Retry-After`` header, in either of its forms (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value)) if value else RETRY_AFTER
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return RETRY_AFTER
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def answer_error(answer: Answer) -> AnyEngineError:
    """The error for an answer by its status alone, as HTTP means them; what an :data:`ErrorMap` falls back on."""
    told = f"{answer.place} answered {answer.status}: {message_of(answer)}"
    if answer.status in {401, 403}:
        advice = "; give native.token or native.headers"
        return ServerRefused(told + advice, field="native.token", status=answer.status)
    if answer.status in {404, 405}:
        return ServerRefused(told, status=answer.status)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS or "retry-after" in answer.headers:
        return Overloaded(told, retry_after=retry_after(answer.headers))
    return _BY_STATUS.get(answer.status, Failure)(told)


_BY_STATUS: dict[int, type[AnyEngineError]] = {
    400: InvalidRequest,
    408: EngineUnresponsive,
    413: InvalidRequest,
    422: InvalidRequest,
    502: EngineDied,
    503: EngineDied,
    504: EngineUnresponsive,
}

#: What the HTTP client raises → ours and the words for it, most specific first.
_BY_EXCEPTION: tuple[tuple[type[Exception], type[AnyEngineError], str], ...] = (
    (httpx.ConnectTimeout, EngineUnresponsive, "the server cannot be reached in time (native.connect_timeout)"),
    (httpx.TimeoutException, EngineUnresponsive, "the server has sent nothing in time (native.read_timeout)"),
    (httpx.DecodingError, MalformedAnswer, "the server's answer is not compressed as it says"),
    (httpx.RemoteProtocolError, EngineDied, "the server broke off its answer"),
    (httpx.ConnectError, EngineDied, "the server cannot be reached"),
    (httpx.NetworkError, EngineDied, "the connection to the server is gone"),
    (OSError, EngineDied, "the connection to the server is gone"),
    (Exception, Failure, "the server cannot be asked"),
)


def transport_error(error: Exception, place: str) -> AnyEngineError:
    """The error for what the HTTP client raised.

    Args:
        error: of the client, or of the system's sockets.
        place: method and path, for the message.
    """
    if isinstance(error, AnyEngineError):
        return error
    cls, words = next((cls, words) for kind, cls, words in _BY_EXCEPTION if isinstance(error, kind))
    return cls(f"{words}: {place}: {type(error).__name__}: {str(error) or 'nothing more'}")
