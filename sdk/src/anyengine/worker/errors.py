"""Errors of ours as data, and back."""

from __future__ import annotations

import traceback
from typing import Any

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
    # A fact that is None is one too: without it the attribute would be missing on the other side.
    facts: dict[str, Any] = {name: None for name, value in vars(error).items() if value is None} | error.as_dict()
    facts["misuse"] = isinstance(error, Misuse)
    notes = getattr(error, "__notes__", None)
    facts.pop("__notes__", None)
    if notes:
        facts["notes"] = list(notes)
    if error.__cause__ is not None:
        facts["traceback"] = "".join(traceback.format_exception(error.__cause__)).strip()
    # Something like the name of a file that is no UTF-8: an error arrives all the same.
    return plain(facts)


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
        facts["log_tail"] = tuple(facts["log_tail"])
    error: AnyEngineError = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update({"message": message, "engine": None, "field": None} | facts)
    for note in notes:
        error.add_note(note)
    if details:
        error.__cause__ = RemoteTraceback(details)
    return error
