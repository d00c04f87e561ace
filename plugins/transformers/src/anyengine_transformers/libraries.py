"""torch and transformers, imported when they are first needed, and untyped: their own types are partial.

Everywhere else they are ``Any``; what leaves :mod:`anyengine_transformers.model` is a NumPy array.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["missing", "torch", "transformers"]


def torch() -> Any:
    """The module ``torch``."""
    return import_module("torch")


def transformers() -> Any:
    """The module ``transformers``."""
    return import_module("transformers")


def missing() -> list[str]:
    """Which of the two are not installed. Imports neither."""
    return [name for name in ("torch", "transformers") if find_spec(name) is None]
