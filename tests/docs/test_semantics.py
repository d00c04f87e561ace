"""``docs/semantics.md`` describes every public field, nothing else, and states the defaults and ranges of the code."""

import math
import re
from pathlib import Path
from typing import Any

import anyengine
import msgspec
import pytest
from anyengine import capabilities, errors, request, stats
from anyengine.config import EngineConfig
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
MODELS: dict[str, type] = {
    cls.__name__: cls
    for module in (anyengine, capabilities, stats)
    for name in module.__all__
    if isinstance(cls := getattr(module, name), type) and issubclass(cls, (BaseModel, msgspec.Struct))
}


def tables(page: str) -> dict[str, list[dict[str, str]]]:
    """Heading → rows of the first table under it, as column → cell."""
    found: dict[str, list[dict[str, str]]] = {}
    heading, columns = "", []
    for line in page.splitlines():
        if line.startswith("#"):
            heading, columns = line.lstrip("#").strip(), []
        elif line.startswith("| ") and not columns and heading not in found:
            columns = cells(line)
            found[heading] = []
        elif line.startswith("| ") and columns and not line.startswith("| ---"):
            found[heading].append(dict(zip(columns, cells(line), strict=True)))
        elif not line.startswith("|"):
            columns = []
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


TABLES = tables(PAGE)
ROWS = [(heading, row) for heading, rows in TABLES.items() for row in rows if "field" in row]


def fields(cls: type) -> dict[str, Any]:
    """Field → default; a required one has ``...``."""
    if issubclass(cls, BaseModel):
        return {
            name: ... if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
            for name, info in cls.model_fields.items()
        }
    return {
        field.name: ...
        if field.required
        else field.default
        if field.default is not msgspec.NODEFAULT
        else field.default_factory()
        for field in msgspec.structs.fields(cls)
    }


def interval(cls: type, name: str) -> str:
    """The bounds of a number, from the model's JSON schema and so from the code."""
    if not issubclass(cls, BaseModel):
        return ""
    schema = cls.model_json_schema()["properties"][name]
    [number] = [s for s in schema.get("anyOf", [schema]) if s.get("type") in {"integer", "number"}] or [{}]
    bounds = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & number.keys()
    if not bounds:
        return ""
    low = number.get("minimum", number.get("exclusiveMinimum", -math.inf))
    high = number.get("maximum", number.get("exclusiveMaximum", math.inf))
    shown = {math.inf: "∞", 2**63: "2**63"}
    left = "[" if "minimum" in number else "("
    right = "]" if "maximum" in number else ")"
    return f"{left}{shown.get(low, f'{low:g}')}, {shown.get(high, f'{high:g}')}{right}"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_field_has_a_row_in_the_order_of_the_code(model: str) -> None:
    assert [row["field"].strip("`") for row in TABLES.get(model, [])] == list(fields(MODELS[model]))


def test_every_table_of_fields_is_of_a_model_that_exists() -> None:
    assert {heading for heading, _ in ROWS} - MODELS.keys() == set()


@pytest.mark.parametrize(("model", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value["field"])
def test_stated_default_is_the_default(model: str, row: dict[str, str]) -> None:
    stated = row["default"].strip("`")
    expected = ... if stated == "required" else eval(stated, {"__builtins__": {}, "frozenset": frozenset} | MODELS)  # noqa: S307 our own page
    actual = fields(MODELS[model])[row["field"].strip("`")]
    assert (expected, type(expected)) == (actual, type(actual))


@pytest.mark.parametrize(
    ("model", "row"),
    [(model, row) for model, row in ROWS if "range" in row],
    ids=lambda value: value if isinstance(value, str) else value["field"],
)
def test_stated_range_is_the_range(model: str, row: dict[str, str]) -> None:
    assert row["range"].strip("`") == interval(MODELS[model], row["field"].strip("`"))


@pytest.mark.parametrize(("model", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value["field"])
def test_every_row_says_what_the_field_means(model: str, row: dict[str, str]) -> None:
    assert len(row["meaning"].split()) >= 2


def test_every_error_is_described_with_what_it_carries() -> None:
    stated = {row["error"].strip("`"): set(re.findall(r"`(\w+)`", row["carries"])) for row in TABLES["Errors"]}
    assert sorted(stated) == sorted(errors.__all__)
    for name, carried in stated.items():
        documented = re.findall(
            r"^\s+(\w+): ", str(vars(errors)[name].__doc__).partition("Attributes:")[2], re.MULTILINE
        )
        assert carried == set(documented), name


def test_stated_limits_are_those_of_the_code() -> None:
    stated = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|$", PAGE, re.MULTILINE))
    assert {limit: int(value.replace(",", "")) for limit, value in stated.items()} == {
        "completions (`n`)": request.MAX_N,
        "alternatives in `logprobs` and `prompt_logprobs`": request.MAX_LOGPROBS,
        "stop strings": request.MAX_STOP_STRINGS,
        "characters of a stop string": request.MAX_STOP_LENGTH,
        "characters of a schema, regex or grammar": request.MAX_STRUCTURED_LENGTH,
        "depth of a schema": request.MAX_SCHEMA_DEPTH,
    }


@pytest.mark.parametrize(
    ("heading", "literal"),
    [
        ("Finish reasons", anyengine.FinishReason),
        ("Log-probabilities", capabilities.LogprobsLevel),
        ("Seeds", EngineConfig.model_fields["determinism"].annotation),
    ],
)
def test_every_value_of_a_choice_is_described(heading: str, literal: Any) -> None:
    stated = [next(iter(row.values())).strip("`") for row in TABLES[heading]]
    assert sorted(stated) == sorted(literal.__args__)


def test_dotted_names_exist() -> None:
    """`scheduling.max_queued_requests` and its like, wherever the text uses them."""
    owners = {name: info.annotation for name, info in EngineConfig.model_fields.items()}
    for owner, member in re.findall(r"`(\w+)\.(\w+)`", PAGE):
        cls = MODELS.get(owner) or owners.get(owner)
        if isinstance(cls, type):
            assert hasattr(cls, member) or member in fields(cls), f"{owner}.{member}"
        elif owner == "engine":
            assert hasattr(anyengine.Engine, member), f"{owner}.{member}"
