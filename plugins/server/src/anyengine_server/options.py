"""Where a server is, as ``EngineConfig.native`` says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from anyengine.errors import InvalidConfig
from msgspec import Struct, field

if TYPE_CHECKING:
    from anyengine.config import EngineConfig

__all__ = ["OPTIONS", "ServerOptions", "is_attached", "server_options"]

#: Names in ``native`` that are read here.
OPTIONS = frozenset({"connect_timeout", "headers", "read_timeout", "served_model", "token", "url"})


class ServerOptions(Struct, frozen=True, kw_only=True):
    """Where a server is, and how it is spoken to.

    Attributes:
        url: ``http`` or ``https``, with a path if the server has one in front of its own.
        headers: sent with every request.
        token: sent as ``Authorization: Bearer``.
        served_model: the model's name there, for a server that has several.
        connect_timeout: seconds for a connection to stand.
        read_timeout: seconds in which a server must send something, while something is awaited of it.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    token: str | None = None
    served_model: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 300.0

    def __repr__(self) -> str:
        # Neither a log nor a traceback shows what the headers and the token hold.
        return f"ServerOptions(url={self.url!r})"


def is_attached(config: EngineConfig) -> bool:
    """Whether a running server is meant, and nothing is started."""
    return "url" in config.native


def server_options(native: Mapping[str, Any]) -> tuple[ServerOptions, dict[str, Any]]:
    """The options of this package, and what else stands in ``native``.

    Raises:
        InvalidConfig: names the option, as ``native.url``.
    """
    rest = {name: value for name, value in native.items() if name not in OPTIONS}
    given = {name: value for name, value in native.items() if name in OPTIONS}
    values: dict[str, Any] = {"url": _url(given.pop("url", None))}
    for name in ("token", "served_model"):
        if given.get(name) is not None:
            values[name] = _text(name, given[name])
    for name in ("connect_timeout", "read_timeout"):
        if name in given:
            values[name] = _seconds(name, given[name])
    if "headers" in given:
        values["headers"] = _headers(given["headers"])
    options = ServerOptions(**values)
    if options.token is not None and any(name.lower() == "authorization" for name in options.headers):
        raise InvalidConfig(
            "native.token: headers has an Authorization already; give one of the two", field="native.token"
        )
    return options, rest


def _wrong(name: str, needed: str, value: object) -> InvalidConfig:
    # The value of a header or token is a secret.
    shown = "" if name in {"headers", "token"} else f", not {value!r}"
    return InvalidConfig(f"native.{name}: must be {needed}{shown}", field=f"native.{name}")


def _url(value: object) -> str:
    needed = "the server's address, such as 'http://127.0.0.1:8000'"
    if not isinstance(value, str):
        raise _wrong("url", needed, value)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or parts.query or parts.fragment:
        raise _wrong("url", needed, value)
    if parts.username is not None or parts.password is not None:
        raise InvalidConfig(
            "native.url: holds a password; give it as native.token or in native.headers", field="native.url"
        )
    return value.rstrip("/")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _wrong(name, "a text of one line", value)
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _wrong(name, "a number of seconds above 0", value)
    return float(value)


def _headers(value: object) -> dict[str, str]:
    needed = "names and values of headers, texts of one line each"
    if not isinstance(value, Mapping):
        raise _wrong("headers", needed, None)
    headers = cast("Mapping[object, object]", value)
    for name, content in headers.items():
        if not (isinstance(name, str) and isinstance(content, str) and name and (name + content).isprintable()):
            raise _wrong("headers", needed, None)
    return {str(name): str(content) for name, content in headers.items()}
