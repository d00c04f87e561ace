"""TensorRT-LLM's classes as the contract facts have them: fields, types, defaults; everything else is refused."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import os
import typing
from pathlib import Path
from typing import Any

import pydantic

__all__ = ["make_classes"]

#: What types in the facts mean here; every other name that is not among the classes is ``Any``.
_TYPES: dict[str, Any] = {
    "Any": Any,
    "Dict": dict,
    "List": list,
    "Literal": typing.Literal,
    "None": None,
    "Optional": typing.Optional,
    "Path": Path,
    "Set": set,
    "Tuple": tuple,
    "Union": typing.Union,
    "bool": bool,
    "bytes": bytes,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "object": Any,
    "str": str,
}
#: The strings of what the C++ runtime works out itself.
_MADE_ELSEWHERE = None


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return _Any


class _AnyMeta(type):
    def __getattr__(cls, name: str) -> Any:
        return _Any

    def __or__(cls, other: object) -> Any:
        return Any

    def __ror__(cls, other: object) -> Any:
        return Any


class _Any(metaclass=_AnyMeta):
    """A type that is not simulated."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(Any)


class _Strict(pydantic.BaseModel):
    """No other fields than those, each of its type."""

    model_config = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, strict=True, protected_namespaces=(), validate_assignment=True
    )


def _default(facts: dict[str, Any], made: dict[str, Any]) -> Any:
    """A function that makes the default of a field; None where the field is required."""
    if "default" in facts:
        return lambda: copy.deepcopy(facts["default"])
    text = facts.get("expression")
    if text is None:
        return None if facts.get("required") else lambda: None
    if text.startswith("<factory "):
        name = text.removeprefix("<factory ").removesuffix(">")
        return made.get(name) or {"list": list, "dict": dict}.get(name, list)
    owner, _, member = text.rpartition(".")
    if owner in made and hasattr(made[owner], member):
        return lambda: made[owner][member]
    if set(text) <= set("0123456789* "):
        base, _, power = text.partition("**")
        return lambda: int(base) ** int(power or 1)
    return lambda: _MADE_ELSEWHERE


def make_classes(facts: dict[str, Any]) -> dict[str, Any]:
    """Name → class, for every enumeration, dataclass, configuration and exception of the facts."""
    made: dict[str, Any] = {
        name: enum.StrEnum(name, {member: member for member in members}) for name, members in facts["enums"].items()
    }
    waiting = dict(facts["classes"])
    # A class whose fields have the type of another is made after it.
    for _ in range(len(waiting)):
        for name, entry in list(waiting.items()):
            words = " ".join(str(each["type"]) + str(each.get("expression")) for each in entry["fields"].values())
            if any(other != name and other in words for other in waiting):
                continue
            waiting.pop(name)
            made.setdefault(name, _make(name, entry, made))
    made["SamplingParams"] = _sampling_params(made["SamplingParams"])
    made["GuidedDecodingParams"] = _guided(made["GuidedDecodingParams"])
    made["LoRARequest"] = _lora_request(made["LoRARequest"])
    return made


def _make(name: str, entry: dict[str, Any], made: dict[str, Any]) -> Any:
    # Bindings of the runtime, and what a later type of the facts says by name.
    names = _Names({**_TYPES, **{key: value for key, value in made.items() if isinstance(value, type)}})
    types = {
        field: eval(facts["type"] or "Any", {"__builtins__": {}}, names)  # noqa: S307 the facts are this repository's
        for field, facts in entry["fields"].items()
    }
    defaults = {field: _default(facts, made) for field, facts in entry["fields"].items()}
    module = entry["module"]
    if entry["kind"] == "pydantic":
        fields: dict[str, Any] = {
            field: (types[field], ... if default is None else pydantic.Field(default_factory=default))
            for field, default in defaults.items()
            if not field.startswith("_")
        }
        return pydantic.create_model(name, __base__=_Strict, __module__=module, **fields)
    if entry["kind"] == "dataclass":
        specification = [
            (field, types[field], _field(defaults[field], init=entry["fields"][field].get("init", True)))
            for field in sorted(types, key=lambda field: defaults[field] is not None)
        ]
        namespace = {"__post_init__": _checked(types), "__module__": module}
        return dataclasses.make_dataclass(name, specification, namespace=namespace)
    base = RuntimeError if entry["kind"] == "exception" else object
    return type(name, (base,), {"__module__": module})


def _field(default: Any, *, init: bool) -> Any:
    return dataclasses.field(init=init) if default is None else dataclasses.field(default_factory=default, init=init)


def _checked(types: dict[str, Any]) -> Any:
    """TensorRT-LLM's dataclasses check no types, and fail later, in C++: here it is told at once."""
    adapters = {
        field: pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True))
        for field, kind in types.items()
    }

    def check(self: Any) -> None:
        for field, adapter in adapters.items():
            try:
                adapter.validate_python(getattr(self, field))
            except pydantic.ValidationError as error:
                raise TypeError(f"{type(self).__name__}.{field}: {error.errors()[0]['msg']}") from error

    return check


def _sampling_params(base: Any) -> Any:
    class SamplingParams(base):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.best_of = self.best_of or self.n
            if self.pad_id is None:
                self.pad_id = self.end_id
            _require(self.top_p is None or 0 <= self.top_p <= 1, f"require 0 <= top_p <= 1, got top_p={self.top_p}")
            _require(self.top_k is None or self.top_k >= 0, f"require top_k >= 0, got top_k={self.top_k}")
            _require(
                self.temperature is None or self.temperature >= 0,
                f"require temperature >= 0, got temperature={self.temperature}",
            )
            _require(self.best_of >= self.n, f"best_of ({self.best_of}) cannot be less than n ({self.n})")
            _require(
                not (self.best_of > 1 and self.greedy and not os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING")),
                "greedy decoding does not allow multiple returns",
            )

        @property
        def greedy(self) -> bool:
            unset = self.temperature is None and self.top_p is None and self.top_k is None
            return unset or self.top_k == 1 or self.top_p == 0.0 or self.temperature == 0

        @property
        def stop_words(self) -> list[list[int]]:
            _require_setup(self.stop is None or self._stop_word_ids is not None, "stop")
            return [[token] for token in self.stop_token_ids or ()] + (self._stop_word_ids or [])

        @property
        def bad_words(self) -> list[list[int]]:
            _require_setup(self.bad is None or self._bad_word_ids is not None, "bad")
            # Without texts the ids of texts are not looked at.
            of_texts = (self._bad_word_ids or []) if self.bad is not None else []
            return [[token] for token in self.bad_token_ids or ()] + of_texts

    return SamplingParams


def _guided(base: Any) -> Any:
    class GuidedDecodingParams(base):
        def __post_init__(self) -> None:
            super().__post_init__()
            given = [self.json is not None, self.regex is not None, self.grammar is not None, self.json_object,
                     self.structural_tag is not None]  # fmt: skip
            _require(sum(given) <= 1, "Only one guide can be used for a request")
            if isinstance(self.json, str):
                json.loads(self.json)

    return GuidedDecodingParams


def _lora_request(base: Any) -> Any:
    class LoRARequest(base):
        def __post_init__(self) -> None:
            super().__post_init__()
            _require(Path(self.lora_path).exists(), f"lora_path ({self.lora_path}) does not exist")

    return LoRARequest


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _require_setup(holds: object, name: str) -> None:
    if not holds:
        raise RuntimeError(f"SamplingParams.{name} is not processed by tokenizer, please call the setup method.")
