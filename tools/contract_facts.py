"""What the scripts share that make ``plugins/*/tests/contract/*.json``: facts of a field or method, and differences."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["difference", "field", "parameters"]

_ABSENT = object()


def field(item: dict[str, Any]) -> dict[str, Any]:
    """Type and default of a field; an expression that is no literal is given as text."""
    facts: dict[str, Any] = {"type": item.get("annotation")}
    if "default_value" in item:
        facts["default"] = item["default_value"]
    elif item.get("default") is not None:
        facts["expression"] = str(item["default"])
    if item.get("required"):
        facts["required"] = True
    if (item.get("constraints") or {}).get("init") == "False":
        facts["init"] = False
    return facts


def parameters(method: dict[str, Any]) -> dict[str, str | None]:
    """Name → type."""
    return {item["name"]: item.get("annotation") for item in method.get("params", [])}


def difference(old: object, new: object, place: str = "") -> list[str]:
    """What changed between two pieces of facts: ``place: old → new``, by place."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{place}.{key}".lstrip(".").replace(".fields.", ".")
            lines += difference(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return lines
    return [] if old == new else [f"{place}: {_shown(old)} → {_shown(new)}"]


def _shown(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)
