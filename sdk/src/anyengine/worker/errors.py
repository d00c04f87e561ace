"""Errors of ours as data, and back."""

from __future__ import annotations

import traceback
from typing import Any, cast

import msgspec

from anyengine import errors
from anyengine.errors import AnyEngineError, Failure, Misuse
from anyengine.outputs import Completion
from anyengine.worker.unsendable import plain

__all__ = ["RemoteTraceback", "decode_error", "encode_error"]


class RemoteTraceback(Exception):
    """Where an error came from in the worker; stands as the ``__cause__`` of what is raised here."""

    def __str__(self) -> str:
        return f"in the worker:\n{self.args[0]}"


def encode_error(error: AnyEngineError) -> dict[str, Any]:
    """The error's type, message and facts, its notes, and the traceback of its cause."""
    about: dict[str, Any] = {"misuse": isinstance(error, Misuse)}
    notes = getattr(error, "__notes__", None)
    if notes:
        about["notes"] = [str(note) for note in notes]
    if error.__cause__ is not None:
        about["traceback"] = "".join(traceback.format_exception(error.__cause__)).strip()
    # A fact that is None is one too: without it the attribute would be missing on the other side.
    facts: dict[str, Any] = {name: None for name, value in vars(error).items() if value is None}
    # Something like the name of a file that is no UTF-8, or data that hold themselves: an error arrives all the same.
    try:
        facts |= plain(error.as_dict())
    except Exception:  # noqa: BLE001 a plugin's own facts may do anything, and cost the caller nothing but themselves
        simple = {name: value for name, value in vars(error).items() if _is_simple(value)}
        facts |= {"type": type(error).__name__, "message": error.message, **simple}
        facts = {name: plain(value) for name, value in facts.items()}
    facts.pop("__notes__", None)
    return facts | plain(about)


def _is_simple(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(part, str) for part in cast("tuple[object, ...]", value))
    return isinstance(value, (str, int, float))


def decode_error(data: dict[str, Any]) -> AnyEngineError:
    """The error that :func:`encode_error` had; one of a type that is not known here becomes the next wider one."""
    facts = dict(data)
    name, message = str(facts.pop("type", "Failure")), str(facts.pop("message", "")).strip()
    misuse, notes, details = facts.pop("misuse", False), facts.pop("notes", ()), facts.pop("traceback", None)
    cls: Any = getattr(errors, name, None) if name in errors.__all__ else None
    if cls is None:
        cls = Misuse if misuse else Failure
        message = f"{name}: {message}"
    partial = facts.get("partial")
    if partial is not None:
        # Keys of a map are text in plain data, token ids here.
        try:
            facts["partial"] = msgspec.convert(partial, Completion, strict=False)
        except msgspec.ValidationError:  # a plugin's own idea of it, which must not cost the error itself
            facts["partial"] = None
    if "log_tail" in facts:
        lines: object = facts["log_tail"]
        facts["log_tail"] = tuple(cast("list[str]", lines)) if isinstance(lines, list) else ()
    error: AnyEngineError = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update({"message": message, "engine": None, "field": None} | facts)
    for note in notes:
        error.add_note(note)
    if details:
        error.__cause__ = RemoteTraceback(details)
    return error
