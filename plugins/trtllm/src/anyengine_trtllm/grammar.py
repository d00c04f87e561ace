"""Compiling a constraint before anything is submitted: TensorRT-LLM compiles it between two steps of its loop.

With ``llguidance``, which comes with TensorRT-LLM, and is what its PyTorch backend compiles with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import EngineStartupError, InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.request import Structured

__all__ = ["GrammarChecker"]

#: More than any constraint of use needs; exploding ones are told early.
_LIMITS = {
    "max_lexer_states": 50_000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 200_000,
    "max_grammar_size": 200_000,
}

#: Patterns that must all match the same text: more take longer than anyone waits.
_MAX_INTERSECTED = 10


class GrammarChecker:
    """Says whether a constraint can be compiled, in bounded time.

    Args:
        tokenizer: ``tokenizer.json``.
        vocab_size: of the model.
        eos_token_ids: the model's.

    Raises:
        EngineStartupError: ``llguidance`` is missing.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        try:
            library = import_module("llguidance")
        except ImportError as error:
            raise EngineStartupError(f"llguidance, which TensorRT-LLM needs, cannot be imported: {error}") from error
        self._matcher: Any = library.LLMatcher
        eos = sorted(token for token in eos_token_ids if token < vocab_size)
        self._tokenizer: Any = library.LLTokenizer(str(tokenizer), n_vocab=vocab_size, eos_token=eos or None)
        limits = getattr(library, "LLParserLimits", None)
        self._options: dict[str, Any] = {} if limits is None else {"limits": limits(**_LIMITS)}

    def check(self, wanted: Structured, guided: Any) -> None:
        """Compile it.

        Args:
            wanted: what was asked for, to name its field.
            guided: the same as TensorRT-LLM's ``GuidedDecodingParams``.

        Raises:
            InvalidRequest: it is malformed, nothing fits it, or it is too complex.
        """
        field = f"structured.{wanted.kind}"
        if wanted.json_schema is False:
            raise InvalidRequest(f"{field}: the schema false accepts nothing", field=field)
        try:
            _check_intersections(wanted)
            matcher = self._matcher(self._tokenizer, self._grammar(guided), log_level=0, **self._options)
            if not matcher.is_error():
                matcher.compute_bitmask()  # lexer states are made here: an exploding expression shows now
            error = matcher.get_error() if matcher.is_error() else ""
        except BaseException as failure:  # a panic in Rust is no Exception
            if not isinstance(failure, Exception) and type(failure).__name__ != "PanicException":
                raise
            raise InvalidRequest(f"{field}: {_words(str(failure))}", field=field) from failure
        if error:
            raise InvalidRequest(f"{field}: {_words(error)}", field=field)

    def _grammar(self, guided: Any) -> str:
        """In llguidance's own form, as TensorRT-LLM makes it."""
        if guided.json is not None:
            return self._matcher.grammar_from_json_schema(guided.json)
        if guided.regex is not None:
            return self._matcher.grammar_from_regex(guided.regex)
        return self._matcher.grammar_from_lark(guided.grammar)


def _check_intersections(wanted: Structured) -> None:
    """Refuse what llguidance would intersect in time exponential in the number of patterns."""
    count = (wanted.grammar or "").count("&") if wanted.grammar is not None else _joined(wanted.json_schema)
    if count > _MAX_INTERSECTED:
        raise ValueError(f"intersects {count} patterns; at most {_MAX_INTERSECTED} are allowed")


def _joined(node: object) -> int:
    """How many schemas a schema intersects with others, where there are patterns to intersect."""
    if isinstance(node, dict):
        schema = cast("dict[str, object]", node)
        members = schema.get("allOf")
        own = len(cast("list[object]", members)) if isinstance(members, list) else 0
        return own + sum(map(_joined, schema.values()))
    return sum(map(_joined, cast("list[object]", node))) if isinstance(node, list) else 0


def _words(error: str) -> str:
    """A message on a line; of a long one, which repeats the grammar, both ends."""
    text = " ".join(error.partition("<state>")[0].split())
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-175:]}"  # noqa: PLR2004 a message stays readable
