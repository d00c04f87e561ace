"""Classes made of the contract facts: fields, types, defaults; everything else is refused."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import typing
from pathlib import Path
from typing import Any

import pydantic

__all__ = ["FACTS", "SimulationError", "limit", "make_dataclass", "make_enum"]

FACTS: dict[str, Any] = json.loads((Path(__file__).parents[3] / "contract" / "0.18.0.json").read_bytes())


class SimulationError(Exception):
    """Something was done that LMDeploy does not refuse and does not survive."""


def limit(name: str) -> Any:
    """A fact that was read in the source."""
    return FACTS["read"][name]["value"]


def make_enum(name: str, base: Any = enum.Enum) -> Any:
    """An enumeration; values are counted where the release counts them."""
    members = FACTS["enums"][name]
    values = {key: number if value is None else value for number, (key, value) in enumerate(members.items(), 1)}
    return base(name, values)


#: What types in the facts mean here; every name that is not among them is ``Any``.
_TYPES: dict[str, Any] = {
    "Any": Any,
    "Literal": typing.Literal,
    "None": None,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
}


class _AnyMeta(type):
    def __getattr__(cls, name: str) -> Any:
        return cls

    def __or__(cls, other: object) -> Any:
        return Any

    def __ror__(cls, other: object) -> Any:
        return Any


class _Anything(metaclass=_AnyMeta):
    """A type that is not simulated."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(Any)


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return _Anything


def make_dataclass(name: str, base: Any = object) -> Any:
    """A dataclass; ``base`` has the validation, as ``check``."""
    entry = FACTS["classes"][name]
    names, adapters, specification = _Names(_TYPES), {}, []
    for field, facts in entry["fields"].items():
        kind = eval(facts["type"], {"__builtins__": {}}, names)  # noqa: S307 the facts are this repository's
        kind = Any if kind is _Anything else kind
        default = facts.get("default", facts.get("expression", _Anything))
        # Annotated int, with the default None: so it is everywhere in that source.
        kind = typing.Optional[kind] if default is None else kind  # noqa: UP045 the other form takes types only
        adapters[field] = pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(strict=True))
        specification.append((field, kind, _field(facts)))

    def __post_init__(self: Any) -> None:  # noqa: N807 what dataclasses call
        for field, adapter in adapters.items():
            value = getattr(self, field)
            try:
                adapter.validate_python(int(value) if isinstance(value, enum.IntEnum) else value)
            except pydantic.ValidationError as error:
                raise TypeError(f"{name}.{field}: {error.errors()[0]['msg']}") from error
        if hasattr(self, "check"):
            self.check()

    specification.sort(key=lambda item: item[2].default_factory is not dataclasses.MISSING)
    namespace = {"__post_init__": __post_init__, "__module__": entry["module"]}
    return dataclasses.make_dataclass(name, specification, bases=(base,), namespace=namespace)


def _field(facts: dict[str, Any]) -> Any:
    if facts.get("required"):
        return dataclasses.field()
    default = facts.get("default")
    return dataclasses.field(default_factory=lambda: copy.deepcopy(default))
