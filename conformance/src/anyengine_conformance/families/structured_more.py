"""Structured output together with the rest of a request, and constraints that cannot be."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from anyengine import InvalidRequest, SamplingParams

from anyengine_conformance.at_once import together
from anyengine_conformance.check import check, family
from anyengine_conformance.families.structured import matches, warm

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("structured", "Structured output")

_REFUSE = "compile the constraint in Backend.validate, and raise InvalidRequest with the field structured.KIND"


@check(
    "structured.ends-by-itself",
    must="A text to which nothing can be added ends with an end-of-sequence token, which is no part of the text.",
    advice="where the text is complete allow the end-of-sequence tokens, all that the request names, and nothing else",
    needs=("structured.regex",),
    tier="extension",
)
async def ends_by_itself(t: Context) -> None:
    answer = await matches(t, "[a-z]{5}")
    ends = t.engine.model.eos_token_ids
    t.expect(answer.stop_reason in ends, expected=f"stop_reason one of {sorted(ends)}", seen=answer.stop_reason)
    t.equal(answer.token_ids[-1], answer.stop_reason, "the last token")
    t.equal(answer.text, await t.engine.detokenize(answer.token_ids[:-1]), "text without the last token")


@check(
    "structured.stream-fits",
    must="What comes in a stream fits the constraint as what `generate` gives does.",
    advice="apply the constraint to every request alike",
    needs=("structured.regex",),
    tier="extension",
)
async def stream_fits(t: Context) -> None:
    regex = "[0-9]{3}(-[a-z]{4}){2}"
    streamed = await t.stream("Answer:", structured={"regex": regex}, max_tokens=64, sampling=warm())
    good = re.fullmatch(regex, streamed.text) is not None
    t.expect(good, expected=f"chunks whose texts, joined, match {regex!r}", seen=streamed.text)
    t.equal(streamed.finish and streamed.finish.reason, "stop", "finish reason")


@check(
    "structured.cut-is-a-beginning",
    must="A completion that `max_tokens` cuts is the beginning of something that fits.",
    advice="end at max_tokens as always, and let the constraint hold until there",
    needs=("structured.regex",),
    tier="extension",
)
async def cut_is_a_beginning(t: Context) -> None:
    for most in (1, 3):
        answer = await t.generate("Answer:", structured={"regex": "[0-9]{400}"}, max_tokens=most, sampling=warm())
        t.equal((len(answer.token_ids), answer.finish_reason), (most, "length"), "(number of tokens, finish_reason)")
        good = re.fullmatch("[0-9]+", answer.text) is not None
        t.expect(good, expected="digits only, the beginning of 400 of them", seen=answer.text)


@check(
    "structured.holds-at-any-temperature",
    must="A constraint holds at temperature 0 as well as at a high one.",
    advice="apply the mask before the choice is made, greedy or not",
    needs=("structured.regex", "sampling.temperature"),
    tier="extension",
)
async def holds_at_any_temperature(t: Context) -> None:
    for temperature in (0.0, 0.3, 1.9):
        await matches(t, "[a-f]{3}[0-9]{3}", n=2, sampling=SamplingParams(temperature=temperature))


@check(
    "structured.with-a-stop-string",
    must="A stop string ends a constrained text as any other; the text is the beginning of something that fits.",
    advice="stop strings are the SDK's",
    needs=("structured.regex",),
    tier="extension",
)
async def with_a_stop_string(t: Context) -> None:
    answer = await t.generate(
        "Answer:", structured={"regex": "[a-z]{2,6},[a-z]{4},"}, stop=[","], max_tokens=64, sampling=warm()
    )
    t.equal((answer.finish_reason, answer.stop_reason), ("stop", ","), "(finish_reason, stop_reason)")
    good = re.fullmatch("[a-z]{2,6}", answer.text) is not None
    t.expect(good, expected="two to six letters, the text before the comma", seen=answer.text)


@check(
    "structured.with-min-tokens",
    must="With `min_tokens` a text that could be complete goes on, and still fits.",
    advice="mask the end-of-sequence tokens until min_tokens, beside the constraint's own mask",
    needs=("structured.regex", "request.min_tokens"),
    tier="extension",
)
async def with_min_tokens(t: Context) -> None:
    answer = await t.generate(
        "Answer:", structured={"regex": "[0-9]{1,400}"}, min_tokens=12, max_tokens=24, sampling=warm()
    )
    t.expect(len(answer.token_ids) > 12, expected="more than 12 tokens", seen=len(answer.token_ids))
    t.expect(re.fullmatch("[0-9]+", answer.text) is not None, expected="digits only", seen=answer.text)


@check(
    "structured.with-ignore-eos",
    must="With `ignore_eos` the text begins with something that fits, unless the engine declares the two a conflict.",
    advice="declare a Conflict of request.structured and request.ignore_eos where nothing may follow a complete text",
    needs=("structured.regex", "request.ignore_eos"),
    tier="extension",
)
async def with_ignore_eos(t: Context) -> None:
    answer = await t.generate(
        "Answer:", structured={"regex": "[a-z]{3}[0-9]{300}"}, ignore_eos=True, max_tokens=16, sampling=warm()
    )
    t.equal(answer.finish_reason, "length", "finish_reason")
    t.expect(
        re.match("[a-z]{3}[0-9]*", answer.text) is not None, expected="three letters, then digits", seen=answer.text
    )


@check(
    "structured.do-not-mix",
    must="Requests with different constraints, and with none, run at once, each by its own.",
    advice="keep a matcher of its own for each sequence; rows of a batch move when one of them ends",
    needs=("structured.regex",),
    tier="extension",
)
async def do_not_mix(t: Context) -> None:
    kinds = ("[0-9]{12}", "[a-z]{20}", "[A-F]{4}", "(no ){6}no")
    plain = [t.generate(max_tokens=24, sampling=warm()) for _ in range(2)]
    answers = await together([*(matches(t, regex) for regex in (*kinds, *kinds)), *plain])
    free = [answer.text for answer in answers[len(kinds) * 2 :]]
    held = [text for text in free if len(text) > 2 and any(re.fullmatch(regex, text) for regex in kinds)]
    t.expect(not held, expected="unconstrained text where no constraint was asked for", seen=held)
    again = await t.generate(max_tokens=16, sampling=warm())
    t.expect(re.fullmatch("[0-9A-F]+", again.text) is None, expected="unconstrained text afterwards", seen=again.text)


async def _malformed(t: Context, kind: str, *values: Any) -> None:
    for value in values:
        with t.refused(InvalidRequest, field=f"structured.{kind}"):
            await t.generate("Answer:", structured={kind: value}, max_tokens=8, sampling=warm())
    answer = await t.generate("Answer:", max_tokens=2, sampling=warm())
    t.expect(bool(answer.token_ids), expected="a plain completion afterwards", seen=answer)


@check(
    "structured.malformed-schema-is-refused",
    must="A schema that is none, or that nothing can fit, is refused as InvalidRequest with its field.",
    advice=_REFUSE,
    needs=("structured.json_schema",),
    tier="extension",
)
async def malformed_schema_is_refused(t: Context) -> None:
    nothing: Any = False
    await _malformed(t, "json_schema", {"type": "wat"}, {"$ref": "#/nowhere"}, nothing, "{no json")


@check(
    "structured.malformed-regex-is-refused",
    must="A regular expression that is none, or looks around or back, is refused as InvalidRequest with its field.",
    advice=_REFUSE,
    needs=("structured.regex",),
    tier="extension",
)
async def malformed_regex_is_refused(t: Context) -> None:
    await _malformed(t, "regex", "(a", "[z-a]", r"(?=a)b", r"(a)\1")


@check(
    "structured.malformed-grammar-is-refused",
    must="A grammar that is none is refused as InvalidRequest with its field.",
    advice=_REFUSE,
    needs=("structured.grammar",),
    tier="extension",
)
async def malformed_grammar_is_refused(t: Context) -> None:
    await _malformed(t, "grammar", "start: nothing", 'start: "a', "no rule at all")


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


#: Within the limits of the SDK, and more than a careless compiler stands.
_HUGE: dict[str, tuple[Any, ...]] = {
    "regex": ("((a{1,100}){1,100}){1,100}", "(.*a){30}b", "|".join(f"word{number:06}" for number in range(20_000))),
    "json_schema": (
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1500)}},
        _deep(50),
        {"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"},
    ),
    "choice": ([f"choice number {number}" for number in range(10_000)],),
    "grammar": (
        "start: a0\n" + "".join(f"a{n}: a{n + 1} a{n + 1} | a{n + 2}\n" for n in range(900)) + 'a900: "x"\na901: "y"\n',
    ),
}


@check(
    "structured.huge-is-bounded",
    must="A constraint that is huge, or explodes, is honoured or refused in bounded time, and the engine lives on.",
    advice="bound the compiler (states, size, seconds), compile outside of the engine's loop, and raise InvalidRequest",
    needs=("structured.regex",),
    deadline=120,
    tier="extension",
)
async def huge_is_bounded(t: Context) -> None:
    loop = asyncio.get_running_loop()
    most = 20.0 * t.time_factor
    for kind, values in _HUGE.items():
        if kind not in t.capabilities.structured:
            continue
        for value in values:
            told = f"{str(value)[:60]!r}… of {len(str(value))} characters"
            t.asked(f"engine.generate('Answer:', structured={kind}: {told}, max_tokens=4)")
            started = loop.time()
            try:
                await t.engine.generate("Answer:", structured={kind: value}, max_tokens=4)  # type: ignore[arg-type]
            except InvalidRequest as error:
                t.equal(error.field, f"structured.{kind}", f"field of the refusal of {told}")
            took = loop.time() - started
            t.expect(took < most, expected=f"an answer or a refusal within {most:g} s", seen=f"{took:.1f} s for {told}")
    answer = await t.generate(max_tokens=2, sampling=warm())
    t.expect(bool(answer.token_ids), expected="a plain completion afterwards", seen=answer)
