"""Structured output: every completion fits its constraint, whatever is drawn."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from anyengine import SamplingParams
from hypothesis import strategies as st

from anyengine_conformance.check import check, family

if TYPE_CHECKING:
    from anyengine import Completion

    from anyengine_conformance.context import Context

family("structured", "Structured output")

_MASK = (
    "apply the constraint's mask of tokens in every step, speculative ones too, and let the end-of-sequence token be "
    "drawn only where the text is complete"
)
#: Tokens for a document; whitespace between its parts is the engine's choice, and costs some.
_ROOM = 320
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "happy": {"type": "boolean"},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}


def warm() -> SamplingParams:
    """Neutral sampling: the constraint has to hold against every draw."""
    return SamplingParams()


def fits_schema(t: Context, answer: Completion, schema: dict[str, Any]) -> bool:
    """A completion that ended by itself is a document that the schema accepts; whether it did."""
    import jsonschema  # noqa: PLC0415 heavy

    if answer.finish_reason != "stop":
        t.expect(
            answer.finish_reason == "length" and answer.text.lstrip()[:1] in ("", "{"),
            expected="a beginning of an object, if cut at max_tokens",
            seen=(answer.finish_reason, answer.text),
        )
        return False
    try:
        document: Any = json.loads(answer.text)
    except ValueError as error:
        raise t.fail(expected=f"JSON that {schema} accepts", seen=f"no JSON ({error}): {answer.text!r}") from error
    validator = jsonschema.Draft202012Validator(schema)
    wrong = next(iter(cast("Any", validator).iter_errors(document)), None)
    t.expect(
        wrong is None,
        expected=f"JSON that {schema} accepts",
        seen=f"{answer.text!r}: {wrong.message if wrong is not None else ''}",
    )
    return True


@check(
    "structured.schema-sampled",
    must="Every sample under a JSON Schema parses, and the schema accepts it.",
    advice=_MASK,
    needs=("structured.json_schema",),
    tier="extension",
)
async def schema_sampled(t: Context) -> None:
    ended = 0
    for prompt in ("A person as JSON:", t.prompt):
        answer = await t.generate(prompt, structured={"json_schema": SCHEMA}, max_tokens=_ROOM, n=4, sampling=warm())
        ended += sum(fits_schema(t, choice, SCHEMA) for choice in answer.choices)
    if not ended:
        raise t.skip(f"the model came to no end in {_ROOM} tokens, eight times")


Schema = dict[str, Any]


def _string(most: int) -> Schema:
    return {"type": "string", "maxLength": most}


def _integer(low: int, span: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": low + span}


def _enum(values: list[Any]) -> Schema:
    return {"enum": values}


def _array(items: Schema, least: int, more: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


_VALUES = st.sampled_from(["a", "bc", "d e", 'q"q', "ü", 1, -2, 3.5, True, None])
_SCALAR: st.SearchStrategy[Schema] = st.one_of(
    st.builds(_string, st.integers(0, 8)),
    st.builds(_integer, st.integers(-99, 99), st.integers(0, 500)),
    st.just({"type": "boolean"}),
    st.just({"type": "number", "minimum": 0, "maximum": 9}),
    st.just({"type": "null"}),
    st.builds(_enum, st.lists(_VALUES, min_size=1, max_size=4, unique_by=repr)),
)


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "name", "x y", "größe", "value", "k1"])

    def build(properties: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name not in left_out],
            "additionalProperties": False,
        }

    return st.builds(build, st.dictionaries(names, inner, min_size=1, max_size=4), st.sets(names, max_size=2))


SCHEMAS = _objects(
    st.one_of(_SCALAR, _SCALAR, st.builds(_array, _SCALAR, st.integers(0, 2), st.integers(0, 2)), _objects(_SCALAR))
)


@check(
    "structured.schemas-made-up",
    must="Samples fit any schema of objects, arrays, strings, numbers, booleans and enumerations.",
    advice=_MASK + "; refuse a keyword that the engine does not honour, never ignore it",
    needs=("structured.json_schema",),
    deadline=120,
    tier="extension",
)
async def schemas_made_up(t: Context) -> None:
    async def holds(schema: dict[str, Any]) -> None:
        answer = await t.generate("JSON:", structured={"json_schema": schema}, max_tokens=_ROOM, n=2, sampling=warm())
        for choice in answer.choices:
            fits_schema(t, choice, schema)

    await t.given(SCHEMAS, holds, examples=12)


@check(
    "structured.schema-as-text",
    must="A schema given as JSON text means the same as one given as data.",
    advice="take structured.json_schema as data; the SDK has parsed it",
    needs=("structured.json_schema",),
    tier="extension",
)
async def schema_as_text(t: Context) -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    }
    answer = await t.generate("JSON:", structured={"json_schema": json.dumps(schema)}, max_tokens=_ROOM)
    fits_schema(t, answer, schema)


async def matches(t: Context, regex: str, **options: Any) -> Completion:
    """A completion under a regular expression that bounds its length; it ends by itself, and matches."""
    asked: dict[str, Any] = {"structured": {"regex": regex}, "max_tokens": 128, "sampling": warm(), **options}
    answer = await t.generate("Answer:", **asked)
    for choice in answer.choices:
        t.expect(
            choice.finish_reason == "stop" and re.fullmatch(regex, choice.text) is not None,
            expected=f"a text that matches {regex!r} as a whole, and then the end",
            seen=f"{choice.text!r}, finish_reason {choice.finish_reason!r}",
        )
    return answer


@check(
    "structured.regex-matches",
    must="Every sample under a regular expression matches it as a whole.",
    advice=_MASK,
    needs=("structured.regex",),
    tier="extension",
)
async def regex_matches(t: Context) -> None:
    for regex in (
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
        r"(yes|no|maybe)!{0,3}",
        r"[A-Z][a-z]{2,8} [0-9]{1,3}",
        r"\(\+?\d{2}\) x",
    ):
        await matches(t, regex, n=3)


def _either(options: list[str]) -> str:
    return f"({'|'.join(options)})"


def _repeated(atom: str, count: str) -> str:
    return f"({atom}){count}"


_ATOMS: st.SearchStrategy[str] = st.one_of(
    st.sampled_from(["a", "Z", "7", " ", "-", r"\.", r"\(", "ab", "the"]),
    st.sampled_from(["[abc]", "[a-z]", "[A-Z]", "[0-9]", r"\d", "[^0-9\\n]"]),
    st.builds(_either, st.lists(st.sampled_from(["yes", "no", "x", "one two"]), min_size=1, max_size=3)),
)
_COUNTED = st.builds(_repeated, _ATOMS, st.sampled_from(["?", "{2}", "{1,3}", "{0,2}"]))
REGEXES = st.lists(st.one_of(_ATOMS, _COUNTED), min_size=1, max_size=5).map("".join)


@check(
    "structured.regexes-made-up",
    must="Samples match any regular expression of literals, classes, groups, alternatives and bounded repetitions.",
    advice=_MASK,
    needs=("structured.regex",),
    deadline=90,
    tier="extension",
)
async def regexes_made_up(t: Context) -> None:
    async def holds(regex: str) -> None:
        await matches(t, regex, n=2)

    await t.given(REGEXES.filter(lambda regex: re.fullmatch(regex, "") is None), holds, examples=20)


@check(
    "structured.choice-is-one-of",
    must="Every sample under `choice` is one of the strings, letter for letter, and more than one can come.",
    advice="escape the strings if they go into a regular expression or a grammar",
    needs=("structured.choice",),
    tier="extension",
)
async def choice_is_one_of(t: Context) -> None:
    for choices in (
        ["yes", "no"],
        ["a", "ab", "abc"],
        ["1 + 1", "(x)", "a|b", ".*", "", "ü"][:4],
        ["a.b", "line\nend"],
    ):
        answer = await t.generate("Answer:", structured={"choice": choices}, max_tokens=64, n=4, sampling=warm())
        for choice in answer.choices:
            t.expect(
                choice.text in choices and choice.finish_reason == "stop",
                expected=f"one of {choices}, and then the end",
                seen=f"{choice.text!r}, finish_reason {choice.finish_reason!r}",
            )


@check(
    "structured.choice-cannot-be-forced-away",
    must="A bias towards a token that the constraint forbids does not break the constraint.",
    advice="apply the constraint's mask after the bias",
    needs=("structured.choice", "sampling.logit_bias"),
    tier="extension",
)
async def choice_cannot_be_forced_away(t: Context) -> None:
    token = (await t.engine.tokenize("zebra", add_special_tokens=False))[-1]
    forced = SamplingParams(logit_bias={token: 100.0})
    answer = await t.generate("Answer:", structured={"choice": ["yes", "no"]}, max_tokens=16, sampling=forced)
    t.expect(answer.text in ("yes", "no"), expected="'yes' or 'no'", seen=answer.text)


@check(
    "structured.grammar-holds",
    must="Every sample under a grammar in Lark's notation belongs to its language, nested parts included.",
    advice="translate Lark's notation to the engine's own in full, or do not declare grammar",
    needs=("structured.grammar",),
    tier="extension",
)
async def grammar_holds(t: Context) -> None:
    nested = 'start: "(" start ")" | "x"'
    answer = await t.generate("((x)) (x) ", structured={"grammar": nested}, max_tokens=64, n=4, sampling=warm())
    for choice in answer.choices:
        text = choice.text
        opened, _, closed = text.partition("x")
        whole = "x" in text and len(opened) == len(closed)
        good = set(opened) <= {"("} and set(closed) <= {")"} and len(closed) <= len(opened)
        t.expect(
            good and (whole or choice.finish_reason == "length"),
            expected="as many ( before the x as ) behind it",
            seen=f"{text!r}, finish_reason {choice.finish_reason!r}",
        )
    listed = 'start: word ("," word)~1..3 END\nword: /[a-z]{1,5}/ | NUMBER\nNUMBER: /[0-9]{1,3}/\nEND: ";" | "."'
    answer = await t.generate("a,b,c. ", structured={"grammar": listed}, max_tokens=96, n=4, sampling=warm())
    pattern = r"([a-z]{1,5}|[0-9]{1,3})(,([a-z]{1,5}|[0-9]{1,3})){1,3}[;.]"
    for choice in answer.choices:
        t.expect(
            re.fullmatch(pattern, choice.text) is not None and choice.finish_reason == "stop",
            expected=f"a text of the grammar {listed!r}",
            seen=f"{choice.text!r}, finish_reason {choice.finish_reason!r}",
        )
