"""Plain JSON data: what a chat template may see, and what comes through a worker as it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from anyengine.errors import InvalidRequest

__all__ = ["plain_data"]

MAX_DEPTH = 100
"""Of lists and mappings in one another; JSON parsers and Python's own recursion draw the line not far above."""


def plain_data(value: Any, place: str, *, depth: int = 0) -> Any:
    """A copy of `value` of nothing but dict, list, str, int, float, bool and None.

    Raises:
        InvalidRequest: (field: the place in `value`) something else, or deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"more than {MAX_DEPTH} lists and mappings in one another", field=place)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        for key in entries:
            if type(key) is not str:
                raise InvalidRequest(f"keys must be text, not {type(key).__name__}", field=place)
        return {str(key): plain_data(item, f"{place}.{key}", depth=depth + 1) for key, item in entries.items()}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return [plain_data(item, f"{place}[{index}]", depth=depth + 1) for index, item in enumerate(items)]
    # Subclasses such as string enumerations can have methods of their own: keep the value, leave them.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise InvalidRequest(f"only JSON data can be given here, not {type(value).__name__}", field=place)
