"""Constraints on the text: a mask of tokens each step, by ``llguidance`` (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
from anyengine.errors import InvalidRequest
from llguidance import JsonCompiler, LLMatcher, LLParserLimits, LLTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.request import Structured
    from numpy.typing import NDArray

__all__ = ["Constraint", "ConstraintCompiler"]


#: Between JSON's tokens: nothing, a space, or a line end with indentation. Unbounded, a small model may never stop.
_JSON = JsonCompiler(whitespace_flexible=True, whitespace_pattern=r"(\n {0,16}| )?")

#: Patterns that must all match the same text. 12 take llguidance 1.9 half a second, 20 longer than anyone waits.
_MAX_INTERSECTED = 10
#: Strings and regular expressions of a Lark grammar.
_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/')


class Constraint:
    """The state of one completion's constraint."""

    def __init__(self, matcher: LLMatcher, field: str, vocab_size: int, eos_token_ids: NDArray[np.int64]) -> None:
        self._matcher = matcher
        self._field = field
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def mask(self) -> NDArray[np.bool_]:
        """What may come next, bool [vocab]; end-of-sequence tokens only where the structure is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.zeros(self._vocab_size, np.bool_)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        mask[: len(allowed)] = allowed
        mask[self._eos_token_ids] = self._matcher.is_accepting()
        return mask

    def accept(self, token_id: int) -> None:
        """Go on with a token that the mask allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"{self._field}: {_words(self._matcher.get_error())}", field=self._field)


class ConstraintCompiler:
    """Makes constraints for one tokenizer. Compiling is bounded, and releases the interpreter lock.

    Args:
        tokenizer: ``tokenizer.json``.
        vocab_size: length of the logits.
        eos_token_ids: at least one of them below ``vocab_size``.

    Raises:
        ValueError: the tokenizer has no bytes that llguidance can tell, or more tokens than the model.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        eos = sorted(token for token in eos_token_ids if token < vocab_size)
        self._eos = np.array(eos, np.int64)
        self._tokenizer = LLTokenizer(str(tokenizer), n_vocab=vocab_size, eos_token=eos)
        self._limits = LLParserLimits(
            max_lexer_states=50_000, initial_lexer_fuel=200_000, step_lexer_fuel=200_000, max_grammar_size=200_000
        )
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def compile(self, structured: Structured) -> Constraint:
        """A fresh constraint.

        Raises:
            InvalidRequest: the grammar is malformed or too complex; names the field.
        """
        field = f"structured.{structured.kind}"
        try:
            matcher = self._compiled(_grammar(structured), field).deep_copy()
        except InvalidRequest:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            raise InvalidRequest(f"{field}: {_words(str(error))}", field=field) from error
        return Constraint(matcher, field, self._vocab_size, self._eos)

    def _compile(self, grammar: str, field: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # lexer states are made here: an exploding regular expression shows now
        if matcher.is_error():
            raise InvalidRequest(f"{field}: {_words(matcher.get_error())}", field=field)
        return matcher


def _intersections(node: object) -> tuple[int, int]:
    """How many schemas a schema intersects with others, and how many patterns there are to intersect."""
    if isinstance(node, dict):
        schema = cast("dict[str, object]", node)
        members = schema.get("allOf")
        joined = len(cast("list[object]", members)) if isinstance(members, list) else 0
        joined += len(schema) > 1 and not schema.keys().isdisjoint({"$ref", "allOf", "anyOf", "oneOf"})
        patterns = ("pattern" in schema) + ("format" in schema)
        children = list(schema.values())
    else:
        joined = patterns = 0
        children = cast("list[object]", node) if isinstance(node, list) else []
    for child in children:
        more = _intersections(child)
        joined, patterns = joined + more[0], patterns + more[1]
    return joined, patterns


def _check_intersections(structured: Structured) -> None:
    """Refuse what llguidance would intersect in time exponential in the number of patterns, and with no bound."""
    if structured.grammar is not None:
        rules = _LITERAL.sub("", structured.grammar)
        if "%json" in rules:  # it would bring schemas that nobody has looked at
            raise ValueError("%json is no part of Lark's notation; use json_schema")
        count = rules.count("&")
    else:
        count = min(_intersections(structured.json_schema))
    if count > _MAX_INTERSECTED:
        raise ValueError(f"intersects {count} patterns; at most {_MAX_INTERSECTED} are allowed")


def _grammar(structured: Structured) -> str:
    """The constraint in llguidance's own form."""
    _check_intersections(structured)
    if structured.json_schema is not None:
        # Of the two schemas that are no objects, true accepts everything, as {} does, and false nothing.
        if structured.json_schema is False:
            raise ValueError("the schema false accepts nothing")
        return _JSON.compile(json.dumps({} if structured.json_schema is True else structured.json_schema))
    if structured.regex is not None:
        return LLMatcher.grammar_from_regex(structured.regex)
    if structured.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(re.escape(choice) for choice in structured.choice))
    # Not grammar_from_lark: that takes a text in braces for llguidance's own form.
    return json.dumps({"grammars": [{"lark_grammar": structured.grammar}]})


def _words(error: str) -> str:
    """A message on a line, without the parser's state; of a long one, which repeats the grammar, both ends."""
    text = " ".join(error.partition("<state>")[0].split())
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-175:]}"  # noqa: PLR2004 a message stays readable
