"""Engines whose text does not fit its constraint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from anyengine import InvalidRequest
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, as_dict, fault, sampling_of
from anyengine_conformance.families.structured import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine import Completion

_DIGITS_400 = "[0-9]{400}"


def _constraint(options: Mapping[str, Any]) -> dict[str, Any]:
    """The constraint of a call; empty without one."""
    given = dict(options.get("structured") or {})
    return {kind: value for kind, value in given.items() if value is not None}


class OtherConstraint(BrokenEngine):
    """Puts another constraint in place of one."""

    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        """What becomes of it; None for nothing."""
        return constraint

    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        constraint = _constraint(options)
        return prompt, {**options, "structured": self.other(constraint)} if constraint else options


class OtherText(BrokenEngine):
    """Changes the text of constrained completions."""

    def text(self, text: str, constraint: dict[str, Any]) -> str:
        """What becomes of it."""
        return text

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        constraint = _constraint(options)
        if isinstance(completion, list) or not constraint:
            return completion
        others = [replace(other, text=self.text(other.text, constraint)) for other in completion.alternatives]
        return replace(completion, text=self.text(completion.text, constraint), alternatives=others)


@fault("structured.schema-sampled", "maximum is ignored")
class MaximumIgnored(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        if constraint.get("json_schema") != SCHEMA:
            return constraint
        age = {"type": "integer", "minimum": 1000}
        return {"json_schema": {**SCHEMA, "properties": {**SCHEMA["properties"], "age": age}}}


@fault("structured.schemas-made-up", "required is ignored")
class RequiredIgnored(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        schema: Any = constraint.get("json_schema")
        made_up = "properties" in as_dict(schema) and schema != SCHEMA and "b" not in schema["properties"]
        return {"json_schema": {**schema, "required": []}} if made_up else constraint


@fault("structured.schema-as-text", "a schema as text is ignored")
class TextIgnored(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        return {"json_schema": {"type": "null"}} if isinstance(constraint.get("json_schema"), str) else constraint


@fault("structured.regex-matches", "the expression may match anywhere in the text")
class NotAnchored(OtherText):
    def text(self, text: str, constraint: dict[str, Any]) -> str:
        return f" {text}" if "[0-9]{4}-" in constraint.get("regex", "") else text


@fault("structured.regexes-made-up", "repetitions are not counted")
class RepetitionsNotCounted(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        regex = constraint.get("regex", "")
        return {"regex": regex.replace("){2}", "){3}")} if regex else constraint


@fault("structured.choice-is-one-of", "the strings are taken for regular expressions")
class ChoicesNotEscaped(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        choices = constraint.get("choice", ())
        return {"regex": "|".join(choices)} if "a.b" in choices else constraint


@fault("structured.choice-cannot-be-forced-away", "with a bias there is no constraint")
class BiasComesFirst(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        biased = sampling_of(options).logit_bias
        return prompt, {**options, "structured": None} if biased else options


@fault("structured.grammar-holds", "recursion goes one level only")
class NoRecursion(OtherConstraint):
    def other(self, constraint: dict[str, Any]) -> dict[str, Any] | None:
        nested = 'start: "(" start' in constraint.get("grammar", "")
        return {"regex": r"\(\(x"} if nested else constraint


@fault("structured.ends-by-itself", "the stop reason is lost")
class ReasonLost(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or _constraint(options).get("regex") != "[a-z]{5}":
            return completion
        return replace(completion, stop_reason=None)


@fault("structured.stream-fits", "streams are not constrained")
class StreamsFree(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        return super().stream(prompt, **{**options, "structured": None})


@fault("structured.cut-is-a-beginning", "room is made for the whole text")
class RoomForAll(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = _constraint(options).get("regex") == _DIGITS_400
        return prompt, {**options, "max_tokens": 500} if whole else options


@fault("structured.holds-at-any-temperature", "greedy requests are not constrained")
class GreedyFree(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        greedy = _constraint(options) and sampling_of(options).greedy
        return prompt, {**options, "structured": None} if greedy else options


@fault("structured.with-a-stop-string", "constrained texts have no stop strings")
class NoStops(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "stop": ()} if _constraint(options) else options


@fault("structured.with-min-tokens", "constrained texts end where they can, whatever min_tokens says")
class EndsWhereItCan(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not _constraint(options) or "min_tokens" not in options:
            return prompt, options
        return prompt, {**options, "min_tokens": 0, "structured": {"regex": "[0-9]{1,3}"}}


@fault("structured.with-ignore-eos", "ignore_eos is dropped with a constraint, without a word")
class IgnoreEosDropped(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "ignore_eos": False} if _constraint(options) else options


@fault("structured.do-not-mix", "requests that come together share the last one's constraint")
class SharedConstraint(BrokenEngine):
    last: ClassVar[Any] = None

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if "structured" in options and set(options["structured"]) == {"regex"}:
            type(self).last = options["structured"]
            await asyncio.sleep(0.002)
            options["structured"] = type(self).last
        return await super().generate(prompt, **options)


class _Dropped(BrokenEngine):
    """Generates without a constraint that is malformed."""

    kind: ClassVar[str] = ""

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        try:
            return await super().generate(prompt, **options)
        except InvalidRequest:
            if self.kind not in _constraint(options):
                raise
            return await super().generate(prompt, **{**options, "structured": None})


@fault("structured.malformed-schema-is-refused", "a malformed schema is dropped")
class SchemaDropped(_Dropped):
    kind = "json_schema"


@fault("structured.malformed-regex-is-refused", "a malformed regular expression is dropped")
class RegexDropped(_Dropped):
    kind = "regex"


@fault("structured.malformed-grammar-is-refused", "a malformed grammar is dropped")
class GrammarDropped(_Dropped):
    kind = "grammar"


@fault("structured.huge-is-bounded", "a large choice takes longer than anyone waits")
class SlowChoice(BrokenEngine):
    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if len(_constraint(options).get("choice", ())) > 1000:  # noqa: PLR2004 many
            await asyncio.sleep(10)
        return await super().generate(prompt, **options)
