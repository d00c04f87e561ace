"""The check of a response format before it is sent."""

from __future__ import annotations

from typing import Any

from .simulation.grammar import check

__all__ = ["ensure_response_format_compilable"]


def ensure_response_format_compilable(response_format: dict[str, Any]) -> None:
    """Raise ValueError for a format that would not compile."""
    try:
        check(response_format)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"Unsupported response format: {error}") from error
