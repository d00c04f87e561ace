"""Constraints on the text by ``llguidance`` (https://github.com/guidance-ai/llguidance): a mask of tokens each step.

The choices that ``docs/semantics.md`` leaves to an engine, of white space in JSON, are those of the reference engine.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine.errors import InvalidRequest
from llguidance import JsonCompiler, LLMatcher, LLParserLimits, LLTokenizer

if TYPE_CHECKING:
    from anyengine.hub import ModelFiles
    from anyengine.request import Structured
    from numpy.typing import NDArray

__all__ = ["Constraint", "ConstraintCompiler"]

#: Unbounded, a small model may indent for ever.
_WHITE_SPACE = r"(\n {0,16}| )?"
#: Patterns that must match at the same place are intersected in time exponential in their number, without a bound of
#: llguidance's own.
_MOST_TOGETHER = 10
#: What may hold an ampersand in a Lark grammar without meaning an intersection: its strings and regular expressions.
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class Constraint:
    """How far one completion has come in its structure."""

    def __init__(self, matcher: LLMatcher, compiler: ConstraintCompiler, field: str) -> None:
        self._matcher = matcher
        self._compiler = compiler
        self._field = field

    def mask(self) -> NDArray[np.bool_]:
        """What may come next, bool [vocab]; the end of the text only where the structure is complete."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
        mask = np.zeros(self._compiler.vocab_size, np.bool_)
        known = min(len(bits), len(mask))
        mask[:known] = bits[:known]
        mask[self._compiler.eos_token_ids] = self._matcher.is_accepting()
        return mask

    def accept(self, token_id: int) -> None:
        """Go on by a token that the mask allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refusal(self._field, self._matcher.get_error())


class ConstraintCompiler:
    """Makes the constraints of one model.

    Attributes:
        vocab_size: length of a mask.
        eos_token_ids: those that the vocabulary has.
    """

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._limits = LLParserLimits(
            max_lexer_states=50_000, initial_lexer_fuel=200_000, step_lexer_fuel=200_000, max_grammar_size=200_000
        )

    @classmethod
    def of(cls, files: ModelFiles, vocab_size: int) -> ConstraintCompiler | None:
        """For a checkpoint; None where nothing can end a structure, or llguidance cannot read the tokenizer."""
        eos = sorted(token for token in files.eos_token_ids if token < vocab_size)
        if not eos:
            return None
        try:
            tokenizer = LLTokenizer(str(files.tokenizer_path / "tokenizer.json"), n_vocab=vocab_size, eos_token=eos)
        except ValueError:
            return None
        return cls(tokenizer, vocab_size, eos)

    def compile(self, structured: Structured) -> Constraint:
        """A constraint at its beginning. In bounded time, and without the interpreter's lock.

        Raises:
            InvalidRequest: the structure is malformed or too complex; names the field.
        """
        field = f"structured.{structured.kind}"
        try:
            matcher = LLMatcher(self._tokenizer, _grammar(structured), log_level=0, limits=self._limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # now, not in the engine's thread, an exploding pattern shows
        except BaseException as error:  # a panic in Rust is no Exception
            raise _refusal(field, str(error)) from error
        if matcher.is_error():
            raise _refusal(field, matcher.get_error())
        return Constraint(matcher, self, field)


def _refusal(field: str, reason: str) -> InvalidRequest:
    """With the reason on a line, without the parser's state; of a long one, which repeats the grammar, both ends."""
    words = " ".join(reason.split("<state>", maxsplit=1)[0].split())
    if len(words) > 300:  # noqa: PLR2004 a message stays readable
        words = f"{words[:120]} … {words[-170:]}"
    return InvalidRequest(f"{field}: {words}", field=field)


def _grammar(structured: Structured) -> str:
    """The structure in llguidance's own form."""
    if structured.json_schema is not None:
        schema: Any = structured.json_schema
        if schema is False:
            raise ValueError("the schema false accepts nothing")
        _bound(min(_combinations(schema), _patterns(schema)))
        compiler = JsonCompiler(whitespace_flexible=True, whitespace_pattern=_WHITE_SPACE)
        return compiler.compile(json.dumps({} if schema is True else schema))
    if structured.regex is not None:
        return LLMatcher.grammar_from_regex(structured.regex)
    if structured.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(re.escape(each) for each in structured.choice))
    rules = _QUOTED.sub("", structured.grammar or "")
    if "%json" in rules:  # a schema in it would pass the bound unseen
        raise ValueError("%json is no part of Lark's notation; use json_schema")
    _bound(rules.count("&"))
    # As JSON: llguidance would take a bare text in braces for its own form, not for Lark's.
    return json.dumps({"grammars": [{"lark_grammar": structured.grammar}]})


def _bound(together: int) -> None:
    if together > _MOST_TOGETHER:
        raise ValueError(f"intersects {together} patterns; at most {_MOST_TOGETHER} are allowed")


def _combinations(node: Any) -> int:
    """How many schemas stand beside others that the same value must fit."""
    if isinstance(node, list):
        return sum(map(_combinations, node))  # pyright: ignore[reportUnknownArgumentType] any JSON
    if not isinstance(node, dict):
        return 0
    members = node.get("allOf")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    here = len(members) if isinstance(members, list) else 0  # pyright: ignore[reportUnknownArgumentType]
    if len(node) > 1 and node.keys() & {"$ref", "allOf", "anyOf", "oneOf"}:  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        here += 1
    return here + sum(map(_combinations, node.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]


def _patterns(node: Any) -> int:
    """How many patterns a schema has that could be intersected."""
    if isinstance(node, list):
        return sum(map(_patterns, node))  # pyright: ignore[reportUnknownArgumentType] any JSON
    if not isinstance(node, dict):
        return 0
    return ("pattern" in node) + ("format" in node) + sum(map(_patterns, node.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
