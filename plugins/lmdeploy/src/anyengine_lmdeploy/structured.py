"""Constraints, as a ``response_format`` of LMDeploy's, and refused where its compiler would not keep them.

LMDeploy compiles with xgrammar. Of a JSON Schema that ignores every keyword it does not know, in silence: so what it
does not enforce is refused here. It also lets any amount of white space stand between the parts of a document, which a
small model may go on writing for ever: so schemas become grammars here, with bounded space, and travel as such.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyengine.request import Structured

    from anyengine_lmdeploy.options import BackendName

__all__ = ["response_format"]

#: Keywords that say nothing of what a document may be.
_ANNOTATIONS = frozenset({
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
})  # fmt: skip

#: Keywords that are enforced beside a ``type`` of theirs, and ignored without it.
_OF_TYPE: dict[str, frozenset[str]] = {
    "array": frozenset({"items", "maxItems", "minItems", "prefixItems"}),
    "integer": frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"}),
    "number": frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"}),
    "object": frozenset({"additionalProperties", "properties", "required"}),
    "string": frozenset({"maxLength", "minLength", "pattern"}),
}

#: Keywords that say everything: what stands beside them is ignored.
_WHOLE = ("$ref", "anyOf", "const", "enum")

#: Keywords whose value is schemas by name, or a list of schemas, or one.
_NAMED = ("$defs", "definitions", "properties")
_LISTED = ("anyOf", "prefixItems")
_SINGLE = ("additionalProperties", "items")

#: What a pattern may not name: characters that a JSON string has to escape, which xgrammar would write as they are.
_UNESCAPED = re.compile(r'"|\\(?:\\|[nrtfvbcux0])|[\x00-\x1f]')

#: What xgrammar makes of a character in a string with a length, and what may stand there.
_ANY_CHARACTER = r"[^\"\\\r\n]"
_ALLOWED_CHARACTER = r"[^\0-\u001f\"\\\r\n]"

#: White space in a row, between the parts of a document.
_MAX_WHITESPACE = 2


def response_format(wanted: Structured, grammar: Any, *, backend: BackendName) -> dict[str, Any]:
    """The constraint, as LMDeploy takes it.

    Args:
        wanted: what was asked for.
        grammar: xgrammar's ``Grammar``.
        backend: TurboMind has an older xgrammar of its own.

    Raises:
        InvalidRequest: it is malformed, or nothing fits it.
        UnsupportedParameter: xgrammar would not keep a part of it.
    """
    field = f"structured.{wanted.kind}"
    if wanted.json_schema is not None:
        if wanted.json_schema is False:
            raise InvalidRequest(f"{field}: the schema false accepts nothing", field=field)
        schema: dict[str, Any] = {} if wanted.json_schema is True else wanted.json_schema
        for keyword, place in _unenforced(schema, "#"):
            raise UnsupportedParameter(
                f"{field}: LMDeploy's compiler does not enforce {keyword!r} at {place} (alone, without its type, or "
                "beside another keyword that says everything); write it another way, or leave it out and check the "
                "answer",
                field=field,
            )
    try:
        source = _source(wanted, grammar)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{field}: {_words(error)}", field=field) from error
    if backend == "turbomind" and "Regex(" in source:
        raise UnsupportedParameter(
            f"{field}: the xgrammar in TurboMind does not take 'pattern'; leave it out, or load with "
            "native.backend='pytorch'",
            field=field,
        )
    return {"type": "structural_tag", "format": {"type": "grammar", "grammar": source}}


def _source(wanted: Structured, grammar: Any) -> str:
    """The constraint in xgrammar's notation."""
    if wanted.json_schema is not None:
        return _printed(
            grammar.from_json_schema(
                json.dumps({} if wanted.json_schema is True else wanted.json_schema),
                any_whitespace=True,
                max_whitespace_cnt=_MAX_WHITESPACE,
                strict_mode=False,
            )
        )
    if wanted.choice is not None:
        return "root ::= " + " | ".join(json.dumps(each, ensure_ascii=False) for each in wanted.choice)
    return _printed(grammar.from_regex(wanted.regex or ""))


def _printed(grammar: Any) -> str:
    """A grammar in xgrammar's notation, which its own parser reads as it was meant.

    It prints a character below 256 as two hexadecimal digits, and reads as many digits as there are: "ße" comes out as
    one character. Four digits are always four. And of a string with a length it lets control characters through, which
    no JSON document may have.
    """

    def wider(found: re.Match[str]) -> str:
        return f"\\u00{found[1]}" if found[1] else found[0]

    return re.sub(r"\\(?:x([0-9a-fA-F]{2})|.)", wider, str(grammar)).replace(_ANY_CHARACTER, _ALLOWED_CHARACTER)


def _unenforced(node: object, place: str) -> Iterator[tuple[str, str]]:
    """What would be ignored: a keyword, and the place where it stands."""
    if not isinstance(node, dict):
        return
    schema = cast("dict[str, Any]", node)
    yield from ((name, place) for name in sorted(_ignored(schema)))
    for name in _NAMED:
        for key, each in cast("dict[str, Any]", schema.get(name) or {}).items():
            yield from _unenforced(each, f"{place}/{name}/{key}")
    for name in _LISTED:
        for index, each in enumerate(cast("list[Any]", schema.get(name) or [])):
            yield from _unenforced(each, f"{place}/{name}/{index}")
    for name in _SINGLE:
        yield from _unenforced(schema.get(name), f"{place}/{name}")


def _ignored(schema: dict[str, Any]) -> set[str]:
    """Keywords of one schema that xgrammar 0.2.8 does not look at; ``tests/test_structured.py`` holds it to that."""
    said = set(schema) - _ANNOTATIONS
    whole = next((name for name in _WHOLE if name in said), None)
    if whole in {"const", "enum"}:
        # A type beside values only repeats what they are, or leaves some of them out: then it would be ignored.
        values = [schema["const"]] if whole == "const" else schema["enum"]
        return said - {whole} - ({"type"} if all(_is_of(value, schema.get("type")) for value in values) else set())
    if whole is not None:
        return said - {whole}
    kinds = schema.get("type")
    enforced = _OF_TYPE.get(kinds, frozenset[str]()) if isinstance(kinds, str) else frozenset[str]()
    ignored = said - {"type"} - enforced
    if "pattern" in said and (said & {"maxLength", "minLength"} or _UNESCAPED.search(str(schema["pattern"]))):
        ignored.add("pattern")
    if not set(schema.get("required") or ()) <= set(schema.get("properties") or {}):
        ignored |= said & {"required"}
    return ignored


def _is_of(value: object, kinds: object) -> bool:
    """Whether a value has a JSON type, or one of several; without a type every value has."""
    names: dict[type, set[str]] = {
        type(None): {"null"},
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        str: {"string"},
        list: {"array"},
        dict: {"object"},
    }
    wanted = set(cast("list[str]", kinds)) if isinstance(kinds, list) else {kinds}
    return kinds is None or bool(names[type(value)] & wanted)


def _words(error: Exception) -> str:
    """What the compiler says, on a line, without the place in its own source."""
    text = " ".join(re.sub(r"\[[^\]]*\.(?:cc|h|py):\d+\]:?", "", str(error)).split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-140:]}"  # noqa: PLR2004 a message stays readable
