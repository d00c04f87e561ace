"""Constraints on the text: a mask of tokens each step, by ``llguidance`` (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

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
    """Makes constraints for one tokenizer. Compiling is bounded, and releases the interpreter lock."""

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._vocab_size = vocab_size
        self._eos = np.array(sorted(eos_token_ids), np.int64)
        self._tokenizer = LLTokenizer(str(tokenizer), n_vocab=vocab_size, eos_token=sorted(eos_token_ids) or None)
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
        grammar = _grammar(structured, field)
        return Constraint(self._compiled(grammar, field).deep_copy(), field, self._vocab_size, self._eos)

    def _compile(self, grammar: str, field: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # lexer states are made here: an exploding regular expression shows now
        if matcher.is_error():
            raise InvalidRequest(f"{field}: {_words(matcher.get_error())}", field=field)
        return matcher


def _grammar(structured: Structured, field: str) -> str:
    """The constraint in llguidance's own form."""
    try:
        if structured.json_schema is not None:
            return _JSON.compile(json.dumps(structured.json_schema))
        if structured.regex is not None:
            return LLMatcher.grammar_from_regex(structured.regex)
        if structured.choice is not None:
            return LLMatcher.grammar_from_regex("|".join(re.escape(choice) for choice in structured.choice))
        return LLMatcher.grammar_from_lark(structured.grammar or "")
    except ValueError as error:
        raise InvalidRequest(f"{field}: {_words(str(error))}", field=field) from error


def _words(error: str) -> str:
    """The first lines of llguidance's message; the rest repeats the grammar."""
    text = " ".join(error.split())
    return text if len(text) <= 300 else text[:297] + "..."  # noqa: PLR2004 a message stays readable
