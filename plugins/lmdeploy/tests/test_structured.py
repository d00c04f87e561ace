"""Constraints against xgrammar itself, which needs torch: what is sent keeps what was asked, the rest is refused."""

from __future__ import annotations

import json

import pytest
from anyengine import Structured
from anyengine.errors import InvalidRequest, UnsupportedParameter
from anyengine_lmdeploy.structured import response_format

pytestmark = pytest.mark.oracle

_END = 256


@pytest.fixture(scope="module")
def xgrammar():
    # As LMDeploy's environment has it: another release ignores other keywords.
    from importlib.metadata import version

    import xgrammar

    assert version("xgrammar") == "0.2.8"
    return xgrammar


@pytest.fixture(scope="module")
def compiler(xgrammar):
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[_END])
    return xgrammar.GrammarCompiler(info)


@pytest.fixture
def fits(xgrammar, compiler):
    """``fits(text, structured)``: whether the text is one that LMDeploy lets pass whole."""

    def check(text, structured, backend="pytorch"):
        wanted = response_format(structured, xgrammar.Grammar, backend=backend)
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(json.dumps(wanted)))
        return all(map(matcher.accept_token, text.encode())) and matcher.accept_token(_END)

    return check


#: Schema, documents that it allows, documents that it does not.
SCHEMAS = [
    ({}, ["1", '"a"', "null", '{"a": [1]}', "[true, false]"], ["", "{", "nul", "[1,]", "'a'"]),
    ({"type": "integer"}, ["0", "-7", "123"], ["1.5", '"1"', "01"]),
    ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "9", "12"], ["2", "13", "-5", "120"]),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}, ["4", "5"], ["3", "6"]),
    ({"type": "number"}, ["1", "-1.5", "2e3"], ["a", "1.", ".5"]),
    ({"type": "boolean"}, ["true", "false"], ["1", "null"]),
    ({"type": "null"}, ["null"], ["0"]),
    ({"type": ["integer", "null"]}, ["1", "null"], ['"a"', "1.5"]),
    ({"type": "string"}, ['""', '"aß"', r'"a\nb"', r'"\u00e9"'], ["a", '"a', '"a\nb"', '"\t"', r'"\q"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"', '"äöü"'], ['"a"', '"abcd"', '"a\nb"']),
    ({"type": "string", "pattern": "^[a-c]{2}$"}, ['"ab"'], ['"a"', '"ad"', '"abc"']),
    ({"enum": ["a", 1, None]}, ['"a"', "1", "null"], ['"b"', "2", "a"]),
    ({"type": "string", "enum": ["a", "b"]}, ['"a"'], ['"c"']),
    # Values have one spelling.
    ({"const": {"a": [1]}}, ['{"a":[1]}'], ['{"a":[2]}', "{}"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"', "true"]),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]"], ['["a"]', "[1", "{}"]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]", "[1,2]"], ["[]"]),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}},
        ['[1, "a"]', '[1, "a", null]'],
        ['["a", 1]', '[1, "a", 2]'],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        ['{"a": 1}', '{"a": 1, "b": "x"}', '{\n"a": 1}'],
        ["{}", '{"b": "x"}', '{"a": 1, "c": 2}', '{"a": "1"}', '{"a": 1,}', '{\n\n\n"a": 1}'],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
        ["{}", '{"a": 1}', '{"b": true}'],
        ['{"b": 1}', '{"a": true}'],
    ),
    ({"type": "object"}, ["{}", '{"anything": [1, {}]}'], ["[]", "1"]),
    (
        {
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}},
                               "additionalProperties": False}},
            "$ref": "#/$defs/node",
        },
        ["{}", '{"next": {"next": {}}}'],
        ['{"next": 1}', '{"last": {}}'],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=[json.dumps(entry[0])[:60] for entry in SCHEMAS])
def test_a_schema_lets_pass_what_it_allows_and_nothing_else(fits, schema, good, bad):
    wanted = Structured(json_schema=schema)
    assert {text: fits(text, wanted) for text in good + bad} == dict.fromkeys(good, True) | dict.fromkeys(bad, False)


#: Schemas with a keyword that xgrammar 0.2.8 passes over, and a document that the keyword forbids.
IGNORED = [
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]", "uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "[2]", "contains"),
    ({"not": {"type": "integer"}}, "1", "not"),
    ({"minimum": 3}, "1", "minimum"),
    ({"maxLength": 1}, '"abc"', "maxLength"),
    ({"anyOf": [{"type": "integer"}], "minimum": 3}, "1", "minimum"),
    ({"enum": [1, "a"], "type": "string"}, "1", "type"),
    ({"type": "string", "if": {"const": "a"}, "then": False}, '"a"', "if"),
    ({"type": "object", "required": ["a"]}, "{}", "required"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, '{"a": 1}', "dependentRequired"),
]

#: The same with one that this release enforces. TurboMind has an older one of its own, so it is refused as well.
ENFORCED = [
    ({"type": "integer", "multipleOf": 3}, "4", "multipleOf"),
    ({"type": "object", "propertyNames": {"pattern": "^a$"}}, '{"b": 1}', "propertyNames"),
    ({"type": ["integer", "null"], "minimum": 3}, "1", "minimum"),
    ({"type": "string", "format": "date"}, '"x"', "format"),
]
REFUSED = IGNORED + ENFORCED


@pytest.mark.parametrize(("schema", "text", "keyword"), REFUSED, ids=[json.dumps(entry[0]) for entry in REFUSED])
def test_a_keyword_that_would_be_ignored_is_refused_by_name(fits, schema, text, keyword):
    with pytest.raises(UnsupportedParameter, match=repr(keyword)) as caught:
        fits(text, Structured(json_schema=schema))
    assert caught.value.field == "structured.json_schema"


@pytest.mark.parametrize(("schema", "text", "keyword"), REFUSED, ids=[json.dumps(entry[0]) for entry in REFUSED])
def test_what_xgrammar_itself_does_about_it(xgrammar, compiler, schema, text, keyword):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema), strict_mode=False))
    passes = all(map(matcher.accept_token, text.encode())) and matcher.accept_token(_END)
    assert passes == ((schema, text, keyword) in IGNORED)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 2}}},
        {"type": "array", "items": {"not": {}}},
        {"anyOf": [{"type": "integer"}, {"type": "array", "prefixItems": [{"multipleOf": 2}]}]},
        {"$defs": {"a": {"type": "string", "format": "date"}}, "$ref": "#/$defs/a"},
        {"type": "object", "additionalProperties": {"uniqueItems": True}},
    ],
    ids=json.dumps,
)
def test_it_is_found_wherever_it_stands(fits, schema):
    with pytest.raises(UnsupportedParameter):
        fits("1", Structured(json_schema=schema))


@pytest.mark.parametrize("schema", [{"type": "objekt"}, False, {"$ref": "#/nowhere"}], ids=json.dumps)
def test_a_schema_that_is_none_is_an_invalid_request(fits, schema):
    with pytest.raises(InvalidRequest) as caught:
        fits("1", Structured(json_schema=schema))
    assert caught.value.field == "structured.json_schema"


@pytest.mark.parametrize(
    ("regex", "good", "bad"),
    [
        ("[a-c]{3}-[0-9]+", ["abc-1", "ccc-42"], ["abd-1", "abc-", "abc-1x"]),
        ("a|bc", ["a", "bc"], ["ab", "b", ""]),
        ("ße?", ["ß", "ße"], ["Þ", "s", "ßß"]),
        (r"\d{2}\.\d", ["12.3"], ["1.23", "12x3"]),
        ("(yes|no)!?", ["yes", "no!"], ["yes!!"]),
        ("[äöü]+", ["äöü"], ["a", "aö"]),
    ],
)
def test_a_regular_expression_holds_for_the_whole_text(fits, regex, good, bad):
    wanted = Structured(regex=regex)
    assert {text: fits(text, wanted) for text in good + bad} == dict.fromkeys(good, True) | dict.fromkeys(bad, False)


def test_a_regular_expression_that_is_none_is_an_invalid_request(fits):
    with pytest.raises(InvalidRequest) as caught:
        fits("a", Structured(regex="(a"))
    assert caught.value.field == "structured.regex"


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_a_choice_is_one_of_them_whatever_stands_in_it(fits, backend):
    choices = ["red", "ße", 'a "quoted" one', "back\\slash", "two\nlines", "日本", "x"]
    wanted = Structured(choice=choices)
    assert {text: fits(text, wanted, backend) for text in choices} == dict.fromkeys(choices, True)
    for text in ("re", "redx", "Þ", "", "two lines"):
        assert not fits(text, wanted, backend)


def test_turbominds_older_compiler_has_no_patterns(fits):
    with pytest.raises(UnsupportedParameter, match="pattern"):
        fits('"a"', Structured(json_schema={"type": "string", "pattern": "^a$"}), "turbomind")
