"""What has no place in msgpack: where it is in a message, and what goes in its stead."""

from __future__ import annotations

from typing import Any, cast

from msgspec import Struct

from anyengine.errors import PluginError
from anyengine.worker.protocol import encode

__all__ = ["UNSENDABLE", "path_to", "plain", "unsendable"]

#: What :func:`anyengine.worker.protocol.encode` raises.
UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)
#: Steps down into a message that an error names.
_MAX_PATH = 8


def path_to(value: object) -> list[str]:
    """The path to what cannot be encoded, as far down as it goes in reasonable time."""
    path: list[str] = []
    while len(path) < _MAX_PATH:
        for key, part in _parts(value):
            if not _fits(part):
                path.append(str(key))
                value = part
                break
        else:
            break
    return path


def unsendable(value: object, error: Exception) -> PluginError:
    """The error for what an engine gave and :func:`anyengine.worker.protocol.encode` did not take."""
    place = ".".join(path_to(value)) or type(value).__name__
    return PluginError(f"{place}: the engine's plugin gave what cannot be sent to the application: {error}")


def _parts(value: object) -> Any:
    if isinstance(value, dict):
        return cast("dict[object, object]", value).items()
    if isinstance(value, (list, tuple)):
        return enumerate(cast("list[object]", value))
    if isinstance(value, Struct):
        return [(name, getattr(value, name)) for name in value.__struct_fields__]
    return ()


def plain(value: Any) -> Any:
    """The same with text in the stead of what cannot be encoded; of text, halves of surrogate pairs are spelt out."""
    if _fits(value):
        return value
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in cast("list[Any]", value)]
    return str(value).encode(errors="backslashreplace").decode()


def _fits(value: object) -> bool:
    try:
        encode(value)
    except UNSENDABLE:
        return False
    return True
