"""Response formats, compiled by ``llguidance``.

LMDeploy compiles with xgrammar, which needs torch. Its EBNF is translated to Lark's notation here, so what xgrammar
alone would refuse, or take, is not known to this simulation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyengine.errors import AnyEngineError
from anyengine.request import Structured
from anyengine_reference.structured import ConstraintCompiler
from llguidance.gbnf_to_lark import gbnf_to_lark

from .facts import limit

__all__ = ["FROM_XGRAMMAR", "Compiler", "TooComplexError", "check", "parse"]

#: What grammars begin with that the simulated xgrammar made; JSON of a response format follows.
FROM_XGRAMMAR = "# simulated: "

#: For a check without a checkpoint: every byte is a token.
_BYTES = ConstraintCompiler(Path("byte"), 257, frozenset({256}))


class TooComplexError(Exception):
    """It compiles, but not with a whole vocabulary: so llguidance, and not xgrammar."""


def parse(response_format: dict[str, Any]) -> Structured | None:
    """A response format as a constraint; None for plain text.

    Raises:
        ValueError: a type that there is not.
        KeyError: a part is missing.
        RuntimeError: a part that cannot be compiled.
    """
    try:
        return _parse(response_format)
    except AnyEngineError as error:  # it is LMDeploy that speaks here
        raise RuntimeError(str(error)) from error


def _parse(response_format: dict[str, Any]) -> Structured | None:
    kind = response_format.get("type", "text")
    if kind not in limit("response_formats"):
        raise ValueError(f"unsupported format type: {kind}")
    if kind == "text":
        return None
    if kind == "json_object":
        return Structured(json_schema={"type": "object"})
    if kind == "regex_schema":
        return Structured(regex=str(response_format.get("regex_schema", "")))
    if kind == "json_schema":
        return Structured(json_schema=_schema(response_format["json_schema"]))
    tag = response_format["format"]
    if tag["type"] != "grammar":
        raise RuntimeError(f"structural tags of type {tag['type']} are not simulated")
    if tag["grammar"].startswith(FROM_XGRAMMAR):
        return parse(json.loads(tag["grammar"].removeprefix(FROM_XGRAMMAR)))
    if not any(line.split("::=")[0].strip() == "root" for line in tag["grammar"].splitlines() if "::=" in line):
        raise RuntimeError("the grammar has no rule named root")
    return Structured(grammar=_lark(tag["grammar"]))


def _schema(schema: Any) -> Any:
    # A schema may be wrapped; so one that has such a key itself is mistaken for the wrapping.
    if isinstance(schema, dict):
        wrapped = [key for key in ("json_schema", "schema") if key in schema]
        schema = schema[wrapped[0]] if wrapped else schema
    if isinstance(schema, str):
        try:
            return json.loads(schema)
        except ValueError as error:
            raise RuntimeError(f"not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise ValueError(f"Cannot parse schema {schema}")  # noqa: TRY004 as the release has it
    return schema


def _lark(ebnf: str) -> str:
    try:
        return gbnf_to_lark(ebnf)
    except Exception as error:
        raise RuntimeError(f"EBNF: {error}") from error


def check(response_format: dict[str, Any]) -> None:
    """Compile without a tokenizer.

    Raises:
        RuntimeError, KeyError, ValueError: it cannot be compiled.
    """
    structured = parse(json.loads(json.dumps(response_format)))
    if structured is not None:
        _compiled(_BYTES, structured)


def _compiled(compiler: ConstraintCompiler, structured: Structured) -> Any:
    try:
        return compiler.compile(structured)
    except AnyEngineError as error:
        raise RuntimeError(str(error)) from error


class Compiler:
    """Makes constraints for a checkpoint's tokenizer.

    Only the end-of-sequence token that the tokenizer names ends a structure, whatever stops a request.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        tokens = json.loads((folder / "tokenizer_config.json").read_bytes())
        end = tokens.get("eos_token")
        end = end["content"] if isinstance(end, dict) else end
        added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
        #: Id of that token.
        self.end = next(entry["id"] for entry in added if entry["content"] == end)
        self._compiler = ConstraintCompiler(folder / "tokenizer.json", vocab_size, frozenset({self.end}))

    def compile(self, response_format: dict[str, Any]) -> Any:
        """A fresh constraint, None for plain text."""
        structured = parse(response_format)
        if structured is None:
            return None
        try:
            return _compiled(self._compiler, structured)
        except RuntimeError as error:
            check(response_format)
            raise TooComplexError(str(error)) from error
