"""Puts what LMDeploy is built on where the plugin imports it; nothing else in the process sees it."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from anyengine_lmdeploy import library

from .executor import DEVICE_FREE, DEVICE_TOTAL
from .grammar import FROM_XGRAMMAR, check
from .tensor import make_torch

__all__ = ["Grammar", "install"]


class Grammar:
    """xgrammar's, which needs torch: a text in no notation but the simulation's."""

    def __init__(self, response_format: dict[str, Any]) -> None:
        check(response_format)
        self._text = FROM_XGRAMMAR + json.dumps(response_format)

    @classmethod
    def from_json_schema(
        cls, schema: str, *, any_whitespace: bool, max_whitespace_cnt: int | None, strict_mode: bool
    ) -> Grammar:
        """Of a schema."""
        return cls({"type": "json_schema", "json_schema": schema})

    @classmethod
    def from_regex(cls, regex_string: str) -> Grammar:
        """Of a regular expression."""
        return cls({"type": "regex_schema", "regex_schema": regex_string})

    def __str__(self) -> str:
        return self._text


def install(patch: Any) -> None:
    """Simulate torch and xgrammar for the plugin until ``patch`` is undone; LMDeploy itself is on ``sys.path``."""
    simulated = {
        "torch": make_torch(free=DEVICE_FREE, total=DEVICE_TOTAL),
        "xgrammar": SimpleNamespace(Grammar=Grammar),
    }
    library.load_library.cache_clear()
    patch.setattr(library, "import_module", lambda name: simulated.get(name) or import_module(name))
