"""Operations whose result can be far larger than their operands, refused before they run.

Each guard works out an upper bound of the result's size and asks the budget for it. A wrong type is left to the
operation itself to complain about.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from anyengine.text.budget import NODE, BudgetExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyengine.text.budget import Budget

__all__ = ["FILTER_GUARDS", "STR_METHOD_GUARDS", "check_format", "check_operator"]

MAX_BITS = 4096
"""Of an integer: more than any date, count or identifier, and quick to multiply."""

MAX_COUNT = 10_000
"""Of columns, rows, slices."""

MAX_INDENT = 16
MAX_PRECISION = 100

# A width of four digits or more, or one that comes from an argument.
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")
WIDE_BRACES = re.compile(r"\{[^{}]*(\{|:[^{}]*\d{4})")


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse ``left operator right`` if its result would be too large."""
    match operator:
        case "+":
            if isinstance(left, str) and isinstance(right, str):
                budget.require(len(left) + len(right))
        case "*":
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
            elif isinstance(right, int):
                budget.require((budget.size(left) + NODE) * max(right, 0))
            elif isinstance(left, int):
                budget.require((budget.size(right) + NODE) * max(left, 0))
        case "**":
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * max(right, 1))
        case _:
            if isinstance(left, str):
                check_percent_format(budget, left, right)


def check_percent_format(budget: Budget, text: str, values: object) -> None:
    """Refuse ``text % values`` with wide fields or a long result."""
    if WIDE_PERCENT.search(text):
        raise BudgetExceededError("it formats a field wider than 999 characters")
    budget.require(len(text) + text.count("%") * budget.size(values))


def check_format(budget: Budget, text: str, values: object) -> None:
    """Refuse ``text.format(*values)`` with wide fields or a long result."""
    if WIDE_BRACES.search(text):
        raise BudgetExceededError("it formats a field wider than 999 characters")
    budget.require(len(text) + text.count("{") * budget.size(values))


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise BudgetExceededError(f"it computes a number of more than {MAX_BITS} bits")


def _check_at_most(what: str, value: object, limit: int) -> None:
    if isinstance(value, int) and abs(value) > limit:
        raise BudgetExceededError(f"it asks for a {what} of more than {limit}")


def _replaced(budget: Budget, text: str, old: Any, new: Any) -> None:
    old, new = str(old), str(new)
    budget.require(len(text) + (text.count(old) + 1) * len(new))


# Methods of str: they take the text and the call's arguments, and give the positional arguments to call with.


def _method_replace(budget: Budget, text: str, old: Any, new: Any, count: int = -1) -> tuple[Any, ...]:
    _replaced(budget, text, old, new)
    return old, new, count


def _method_join(budget: Budget, text: str, items: Iterable[Any]) -> tuple[Any, ...]:
    items = list(budget.counted(items))
    budget.require(budget.size(items) + len(text) * len(items))
    return (items,)


def _method_width(budget: Budget, text: str, width: int, *fill: str) -> tuple[Any, ...]:
    del text
    budget.require(width)
    return (width, *fill)


def _method_expandtabs(budget: Budget, text: str, tabsize: int = 8) -> tuple[Any, ...]:
    budget.require(len(text) + text.count("\t") * tabsize)
    return (tabsize,)


STR_METHOD_GUARDS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "center": _method_width,
    "expandtabs": _method_expandtabs,
    "join": _method_join,
    "ljust": _method_width,
    "replace": _method_replace,
    "rjust": _method_width,
    "zfill": _method_width,
}


# Filters: they take the value and the call's arguments, and give the value to go on with.


def _filter_center(budget: Budget, value: Any, width: int = 80) -> Any:
    budget.require(width)
    return value


def _filter_format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    check_percent_format(budget, str(value), (args, kwargs))
    return value


def _filter_indent(budget: Budget, value: str, width: int | str = 4, *_args: Any, **_kwargs: Any) -> Any:
    columns = width if isinstance(width, int) else len(width)
    budget.require(len(value) + (value.count("\n") + 1) * columns)
    return value


def _filter_join(budget: Budget, value: Iterable[Any], d: object = "", *_args: Any, **_kwargs: Any) -> Any:
    items = list(budget.counted(value))
    budget.require(budget.size(items) + len(str(d)) * len(items))
    return items


def _filter_replace(budget: Budget, value: Any, old: Any, new: Any, *_args: Any, **_kwargs: Any) -> Any:
    _replaced(budget, str(value), old, new)
    return value


def _filter_rows(budget: Budget, value: Any, count: int, *_args: Any, **_kwargs: Any) -> Any:
    del budget
    _check_at_most("number of rows or columns", count, MAX_COUNT)
    return value


def _filter_batch(budget: Budget, value: Any, linecount: int, *_args: Any, **_kwargs: Any) -> Any:
    return _filter_rows(budget, value, linecount)


def _filter_slice(budget: Budget, value: Any, slices: int, *_args: Any, **_kwargs: Any) -> Any:
    return _filter_rows(budget, value, slices)


def _filter_round(budget: Budget, value: Any, precision: int = 0, *_args: Any, **_kwargs: Any) -> Any:
    del budget
    _check_at_most("precision", precision, MAX_PRECISION)
    return value


def _filter_sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    del budget, attribute
    if not isinstance(start, (int, float)):  # lists would be added up in quadratic time
        raise BudgetExceededError("it sums up something other than numbers")
    return value


def _filter_string(budget: Budget, value: Any) -> Any:
    budget.size(value)
    return value


def _filter_to_json(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
    indent = kwargs.get("indent", cast("Any", args[1] if len(args) > 1 else None))
    _check_at_most("indentation", len(indent) if isinstance(indent, str) else indent, MAX_INDENT)
    budget.size(value)
    return value


FILTER_GUARDS: dict[str, Callable[..., Any]] = {
    "batch": _filter_batch,
    "center": _filter_center,
    "format": _filter_format,
    "indent": _filter_indent,
    "join": _filter_join,
    "replace": _filter_replace,
    "round": _filter_round,
    "slice": _filter_slice,
    "string": _filter_string,
    "sum": _filter_sum,
    "tojson": _filter_to_json,
}
