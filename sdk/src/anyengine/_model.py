"""The base of every pydantic model of ours: frozen, strict, and speaking in our own errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from anyengine.errors import InvalidConfig, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails


class StrictModel(BaseModel):
    """Frozen, strict (``"1"`` is no ``1``), no unknown fields; a bad value raises ``error`` with the field's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    error: ClassVar[type[InvalidRequest | InvalidConfig]] = InvalidRequest

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message, field = _explain(type(self), first)
            raise self.error(message, field=field) from error

    def changed(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted names of the leaf fields whose value differs from the default."""
        defaults = _defaults(type(self))
        for name in self.model_fields_set:
            value, default = getattr(self, name), defaults[name]
            if value == default:
                continue
            if isinstance(value, StrictModel) and isinstance(default, StrictModel):
                yield from value.changed(f"{prefix}{name}.")
            else:
                yield prefix + name


@cache
def _defaults(model: type[StrictModel]) -> dict[str, Any]:
    return {
        name: info.get_default(call_default_factory=True, validated_data={})
        for name, info in model.model_fields.items()
    }


def _explain(model: type[StrictModel], error: ErrorDetails) -> tuple[str, str]:
    """Message and field name for the first thing that pydantic found wrong."""
    # Unions add the member's type to the path; a caller knows only field names and indices.
    path = [part for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    field = ".".join(str(part) for part in path) or model.__name__
    if error["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return f"unknown field {field!r}; the fields of {model.__name__} are {known}", field
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."  # noqa: PLR2004 a message stays on a line
    reason = error["msg"].removeprefix("Value error, ")
    return f"{field}: {reason[:1].lower()}{reason[1:]} (got {shown})", field


def _to_tuple(value: object) -> object:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return value  # left to pydantic to refuse
    return tuple(cast("Sequence[object]", value))


def _strings(value: object) -> object:
    return (value,) if isinstance(value, str) else _to_tuple(value)


#: Any sequence is accepted and a tuple is kept, so that models stay frozen in depth.
TokenIds = Annotated[Sequence[Annotated[int, Field(ge=0)]], BeforeValidator(_to_tuple)]
Words = Annotated[Sequence[Annotated[str, Field(min_length=1)]], BeforeValidator(_strings)]
AsTuple = BeforeValidator(_to_tuple)
