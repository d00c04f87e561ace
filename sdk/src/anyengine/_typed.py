"""Whether values of the right class hold values of the right types, which no struct looks at when it is made.

What a plugin gives may be sent from a worker, where its reader takes nothing else: so the measure is what msgpack makes
of it, for an engine in this process too.
"""

from __future__ import annotations

import re
import reprlib
from functools import cache
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import msgpack

__all__ = ["ill_typed"]

#: One step of a place as msgspec writes it: a field, or an index; of the values of a map it does not say which.
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_FOREIGN = 1
_short = reprlib.Repr()
_short.maxother = 80


def ill_typed(value: object, kind: Any = None) -> str | None:
    """What in a value is not of the type that it has to be, and what that is; None if all is well.

    Args:
        value: a struct, or a list of them.
        kind: its type; the class of the value if left out.
    """
    try:
        _decoder(kind or type(value)).decode(_encoder.encode(value))
    except msgspec.ValidationError as error:
        return _told(value, str(error))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        from anyengine.worker.unsendable import path_to  # noqa: PLC0415 rare

        where = ".".join(path_to(value)) or type(value).__name__
        return f"what cannot be sent as {where}: {error}"
    return None


def _told(value: object, problem: str) -> str:
    """``Expected `int`, got `float` - at `$.token_ids[0]` `` with the value itself."""
    expected, _, place = problem.replace("`", "").rpartition(" - at ")
    of_key, _, path = place.rpartition("key in ")
    found: Any = value  # and its parts
    position = 1  # behind the $
    while (step := _STEP.match(path, position)) is not None:
        name, index = step.groups()
        found = getattr(found, name) if name else list(found)[int(index)]
        position = step.end()
    where = path.removeprefix("$").removeprefix(".") or type(value).__name__
    expected = expected[:1].lower() + expected[1:].replace("got ext", f"got {type(found).__name__}")
    return f"{_short.repr(found)} as {'a key of ' * bool(of_key or 'key in' in place)}{where}: {expected}"


def _foreign(value: object) -> object:
    return str(value) if isinstance(value, PurePath) else msgpack.Ext(_FOREIGN, b"")


def _refuse(code: int, data: memoryview) -> object:
    del code, data
    raise TypeError("neither numbers, text, lists nor maps")


def _read(kind: type, value: object) -> object:
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"a {kind.__name__} cannot be sent")


_encoder = msgpack.Encoder(enc_hook=_foreign)


@cache
def _decoder(kind: Any) -> msgpack.Decoder[Any]:
    return msgpack.Decoder(kind, dec_hook=_read, ext_hook=_refuse)
