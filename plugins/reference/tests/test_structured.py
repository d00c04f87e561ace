"""Structured output: what ends by itself fits the structure, and a hostile one harms nobody but its sender."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from anyengine import Engine, SamplingParams, Structured
from anyengine.errors import InvalidRequest
from anyengine_reference.structured import ConstraintCompiler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EOS = 256
VOCAB = 259
SECONDS = 1.0  # of the processor: what else runs on the machine is none of its doing
PROPERTY = settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def compiler(bytes_folder: Path) -> ConstraintCompiler:
    return ConstraintCompiler(bytes_folder / "tokenizer.json", VOCAB, frozenset({EOS}))


@pytest.fixture(scope="module")
def tokenizer(bytes_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bytes_folder / "tokenizer.json"))


@pytest.fixture
async def engine(bytes_folder: Path) -> AsyncIterator[Engine]:
    async with Engine.load("reference", model=str(bytes_folder)) as loaded:
        yield loaded


def sample(compiler: ConstraintCompiler, tokenizer: Tokenizer, structured: Structured, seed: int) -> str | None:
    """A text of uniformly drawn allowed tokens; None if it did not end by itself. Watches the time of each step."""
    chance = np.random.default_rng(seed)
    constraint = compiler.compile(structured)
    token_ids: list[int] = []
    for _ in range(300):
        begun = time.process_time()
        allowed = np.flatnonzero(constraint.mask())
        assert time.process_time() - begun < SECONDS
        assert len(allowed)
        token = EOS if EOS in allowed and chance.random() < 0.5 else int(chance.choice(allowed))
        if token == EOS:
            return tokenizer.decode(token_ids, skip_special_tokens=False)
        token_ids.append(token)
        constraint.accept(token)
    return None


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.text('abcdé "\\', min_size=1, max_size=4)
    leaves = st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        st.tuples(st.integers(-50, 0), st.integers(0, 2000)).map(
            lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
        ),
        st.tuples(st.integers(0, 3), st.integers(3, 6)).map(
            lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[1]}
        ),
        st.lists(st.one_of(names, st.integers(), st.booleans()), min_size=1, max_size=4).map(lambda xs: {"enum": xs}),
        names.map(lambda value: {"const": value}),
    )

    def nest(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.one_of(
            st.tuples(inner, st.integers(0, 2), st.integers(2, 3)).map(
                lambda each: {"type": "array", "items": each[0], "minItems": each[1], "maxItems": each[2]}
            ),
            st.dictionaries(names, inner, max_size=3).flatmap(
                lambda properties: st.lists(st.sampled_from(sorted(properties) or ["a"]), unique=True).map(
                    lambda required: {
                        "type": "object",
                        "properties": properties,
                        "required": [name for name in required if name in properties],
                        "additionalProperties": False,
                    }
                )
            ),
            st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each}),
        )

    return st.recursive(leaves, nest, max_leaves=4)


@PROPERTY
@given(schema=schemas(), seed=st.integers(0, 2**32 - 1))
def test_every_sample_of_a_schema_is_json_that_validates(
    compiler: ConstraintCompiler, tokenizer: Tokenizer, schema: dict[str, Any], seed: int
) -> None:
    text = sample(compiler, tokenizer, Structured(json_schema=schema), seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


PATTERNS = [
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"(abc|de+f?)*",
    r"[^a-z\n ]{3,5}",
    r"a.c|\.\*\n",
    r"(?i)yes|no",
    r"^[+-]?(0|[1-9][0-9]{0,5})(\.[0-9]{1,3})?$",
    r"é{2}ü?",
    "a/b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_sample_of_a_regular_expression_matches_as_a_whole(
    compiler: ConstraintCompiler, tokenizer: Tokenizer, pattern: str
) -> None:
    texts = [sample(compiler, tokenizer, Structured(regex=pattern), seed) for seed in range(20)]
    ended = [text for text in texts if text is not None]
    assert ended
    assert [text for text in ended if not re.fullmatch(pattern, text)] == []


def test_a_choice_is_one_of_the_strings_whatever_is_in_them(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    choices = ["a|b", "(c", "d\ne", "é😀", " x", "x#y", "/", "\\", "[0]", "a", "ab", '"', "-", "~", "&", "<|end|", "\0"]
    structured = Structured(choice=choices)
    seen = {sample(compiler, tokenizer, structured, seed) for seed in range(400)}
    assert seen == set(choices)


def test_ten_thousand_long_choices(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    choices = [f"{number:05} of the many words" for number in range(10_000)]
    assert sample(compiler, tokenizer, Structured(choice=choices), 1) in choices


def test_every_sample_of_a_grammar_is_in_its_language(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    grammar = 'start: sum\nsum: term ("+" term){0,3}\nterm: NUMBER | "(" sum ")"\nNUMBER: /[1-9][0-9]{0,2}/\n'
    texts = [sample(compiler, tokenizer, Structured(grammar=grammar), seed) for seed in range(30)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 5
    for text in ended:
        assert re.fullmatch(r"[0-9+()]+", text)
        assert eval(text) > 0  # noqa: S307 digits, plus signs and brackets


def test_end_of_sequence_is_allowed_only_where_the_structure_is_complete(compiler: ConstraintCompiler) -> None:
    constraint = compiler.compile(Structured(regex="aa?"))
    letter = int(np.flatnonzero(constraint.mask())[0])
    allowed = []
    for _ in range(2):
        allowed.append(np.flatnonzero(constraint.mask()).tolist())
        constraint.accept(letter)
    allowed.append(np.flatnonzero(constraint.mask()).tolist())
    assert allowed == [[letter], [letter, EOS], [EOS]]


@pytest.mark.parametrize("schema", [True, {}])
def test_a_schema_that_accepts_everything_gives_any_json(
    compiler: ConstraintCompiler, tokenizer: Tokenizer, schema: Any
) -> None:
    texts = [sample(compiler, tokenizer, Structured(json_schema=schema), seed) for seed in range(20)]
    assert [json.loads(text) for text in texts if text is not None]


def _blow_up(depth: int) -> dict[str, Any]:
    return {"allOf": [{"oneOf": [{"properties": {f"a{i}{j}": {}}} for j in range(6)]} for i in range(depth)]}


def _nested_patterns(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for number in range(depth):
        schema = {"type": "string", "pattern": f".*a.{{{number}}}b", "anyOf": [schema]}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "two repetitions": {"regex": "(a{1,1000}){1,1000}"},
    "three repetitions": {"regex": "((a{1,100}){1,100}){1,100}"},
    "exponential automaton": {"regex": "(a|b)*a(a|b){30}"},
    "exponential automata": {"regex": "(.*a.{30}b|.*c.{30}d|.*e.{30}f)*"},
    "gaps": {"regex": ".*a.{20}b.{20}c"},
    "20,000 alternatives": {"regex": "|".join(f"word{number}" for number in range(20_000))},
    "5,000 groups": {"regex": "(" * 5_000 + "a" + ")" * 5_000},
    "2,000 optional groups": {"regex": "(" * 2_000 + "a" + ")?" * 2_000},
    "long string": {"json_schema": {"type": "string", "minLength": 10**9}},
    "many items": {"json_schema": {"type": "array", "minItems": 100_000}},
    "all of one of": {"json_schema": _blow_up(8)},
    "all of 40 patterns": {
        "json_schema": {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b"} for i in range(40)]}
    },
    "nested any of": {"json_schema": _nested_patterns(25)},
    "property patterns": {"json_schema": {"patternProperties": {f"^.*a.{{{i}}}b": {} for i in range(40)}}},
    "all of in a grammar": {
        "grammar": "start: %json "
        + json.dumps({"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b"} for i in range(40)]})
    },
    "all of patterns": {"json_schema": {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b"} for i in range(12)]}},
    "3,000 properties": {"json_schema": {"properties": {f"p{number}": {} for number in range(3_000)}}},
    "20,000 values": {"json_schema": {"enum": [f"v{number}" for number in range(20_000)]}},
    "doubling references": {
        "json_schema": {
            "$defs": {
                **{f"d{i}": {"anyOf": [{"items": {"$ref": f"#/$defs/d{i + 1}"}}] * 2} for i in range(40)},
                "d40": {},
            },
            "$ref": "#/$defs/d0",
        }
    },
    "5,000 brackets": {"grammar": "start: " + "(" * 5_000 + '"a"' + ")" * 5_000},
    "ambiguous rules": {"grammar": 'start: x\nx: x x | x x x | "a" | "b" | /[a-z]+/\n'},
    "doubling rules": {
        "grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"\n'
    },
    "many lexemes": {"grammar": f"start: ({'|'.join(f'/[a-z]*a[a-z]{{{i}}}/' for i in range(60))})*\n"},
    "intersections": {"grammar": "start: A\nA: " + " & ".join(f"/(?s:.*a.{{{i}}}b.*)/" for i in range(20, 60)) + "\n"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_structure_is_refused_by_name_or_bounded_in_time(
    name: str, compiler: ConstraintCompiler, tokenizer: Tokenizer
) -> None:
    structured = Structured(**HOSTILE[name])
    refused: InvalidRequest | None = None
    begun = time.process_time()
    try:
        compiler.compile(structured)
    except InvalidRequest as error:
        refused = error
    assert time.process_time() - begun < 3 * SECONDS
    try:
        sample(compiler, tokenizer, structured, 3)
    except InvalidRequest as error:
        refused = error
    if refused is not None:
        assert refused.field == f"structured.{structured.kind}"
        assert len(refused.message) < 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"regex": "(a"},
        {"regex": "(?=a)b"},
        {"regex": r"(a)\1"},
        {"regex": r"[^\s\S]"},
        {"grammar": "start: nothing"},
        {"grammar": 'start "a" ((('},
        {"grammar": "start: A\nA: B\nB: A\n"},
        {"grammar": '{"grammars": [{"json_schema": true}]}'},
        {"json_schema": False},
        {"json_schema": {"type": "nonsense"}},
        {"json_schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
        {"json_schema": {"$ref": "#/$defs/none"}},
        {"json_schema": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
    ],
    ids=str,
)
async def test_a_wrong_structure_is_refused_by_name_and_the_engine_goes_on(wrong: Any, engine: Engine) -> None:
    good = {"prompt": [5, 6, 7], "max_tokens": 10, "ignore_eos": True, "sampling": SamplingParams(seed=1)}
    alone = await engine.generate(**good)  # type: ignore[arg-type]
    together, refused = await asyncio.gather(
        engine.generate(**good),  # type: ignore[arg-type]
        engine.generate([1, 2], structured=Structured(**wrong), max_tokens=10),
        return_exceptions=True,
    )
    assert isinstance(refused, InvalidRequest)
    assert refused.field == f"structured.{next(iter(wrong))}"
    assert "<state>" not in refused.message
    assert together.token_ids == alone.token_ids  # type: ignore[union-attr]
    await engine.health()


async def test_min_tokens_beyond_what_the_structure_has_is_refused(engine: Engine) -> None:
    fits = await engine.generate([1], structured=Structured(regex="a{2,9}"), min_tokens=4, max_tokens=20)
    assert len(fits.token_ids) > 4
    assert fits.finish_reason == "stop"
    with pytest.raises(InvalidRequest) as caught:
        await engine.generate([1], structured=Structured(regex="aa"), min_tokens=4, max_tokens=20)
    assert caught.value.field == "sampling"


async def test_a_structure_cut_by_max_tokens_is_a_beginning(engine: Engine) -> None:
    answer = await engine.generate([1], structured=Structured(choice=["abcdefgh"]), max_tokens=3)
    assert (answer.text, answer.finish_reason) == ("abc", "length")


async def test_logprobs_under_a_structure_are_of_the_raw_distribution(engine: Engine) -> None:
    answer = await engine.generate([1, 2], structured=Structured(choice=["abc"]), logprobs=0, max_tokens=9)
    score = await engine.score([1, 2, *answer.token_ids])
    assert answer.logprobs == score.entries[2:]


async def test_a_model_without_end_of_sequence_has_no_structured_output(model_folder: Any) -> None:
    folder = model_folder()
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    async with Engine.load("reference", model=str(folder)) as engine:
        assert engine.capabilities.structured == frozenset()
