"""Requests and refusals: honoured or refused, never ignored, and nothing is submitted of what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import GenerateRequest, InvalidRequest, UnsupportedParameter

from anyengine_conformance import refusals
from anyengine_conformance.check import OWN, check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.needs import declared, parse

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("requests", "Requests and refusals")

_SDK = "the SDK validates requests before the backend sees them; do not go round it, and do not catch its errors"
_RANGES: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.1, float("inf"), float("nan"), "1"),
    "top_p": (0, 1.01, -1.0),
    "top_k": (-1, 1.5, True),
    "min_p": (-0.1, 1.1),
    "repetition_penalty": (0.0, -1.0),
    "presence_penalty": (2.1, -2.1),
    "frequency_penalty": (2.1, -2.1),
    "seed": (-1, 2**63, 1.0),
    "allowed_token_ids": ([], [-1], "abc"),
    "logit_bias": ({-1: 1.0}, {1: float("inf")}),
    "bad_words": ([""], [1]),
}
_WRONG: dict[str, tuple[Any, ...]] = {
    "max_tokens": (0, -1, "16", 1.5, True),
    "min_tokens": (-1, "1"),
    "n": (0, -1, 2.0),
    "stop": ([""], 7),
    "stop_token_ids": ([-1], ["a"]),
    "include_stop": (1, "yes"),
    "ignore_eos": (1,),
    "logprobs": (-1, "5"),
    "timeout": (0, -1.0, float("nan")),
}


@check("requests.empty-prompt", must="An empty prompt is refused as InvalidRequest.", advice=_SDK)
async def empty_prompt(t: Context) -> None:
    with t.refused(InvalidRequest, field="prompt"):
        await t.generate("", max_tokens=1)


@check("requests.prompt-or-messages", must="A prompt beside messages is refused as InvalidRequest.", advice=_SDK)
async def prompt_or_messages(t: Context) -> None:
    with t.refused(InvalidRequest):
        await t.generate(t.prompt, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)


@check("requests.unknown-field", must="A field that does not exist is refused by its name.", advice=_SDK)
async def unknown_field(t: Context) -> None:
    with t.refused(InvalidRequest, field="max_token"):
        await t.generate(max_token=1)


@check(
    "requests.wrong-values",
    must="Values out of range, or of the wrong type, are refused by the field's name.",
    advice=_SDK,
)
async def wrong_values(t: Context) -> None:
    for name, values in _WRONG.items():
        for value in values:
            with t.refused(InvalidRequest):
                await t.generate(**{"max_tokens": 1, name: value})


@check(
    "requests.wrong-sampling-values",
    must="Sampling values out of range, or of the wrong type, are refused.",
    advice=_SDK,
)
async def wrong_sampling_values(t: Context) -> None:
    for name, values in _RANGES.items():
        for value in values:
            # As data, so that it is the request that is refused.
            with t.refused(InvalidRequest):
                await t.generate(sampling={name: value}, max_tokens=1)


@check(
    "requests.max-tokens-must-fit",
    must="A `max_tokens` that does not fit behind the prompt is refused, never lowered.",
    advice="report the true context in BackendInfo.max_model_len; the SDK refuses what does not fit",
)
async def max_tokens_must_fit(t: Context) -> None:
    room = t.engine.info.max_model_len - len(await t.engine.tokenize(t.prompt))
    with t.refused(InvalidRequest, field="max_tokens"):
        await t.generate(max_tokens=room + 1)


@check(
    "requests.prompt-must-fit",
    must="A prompt that leaves no room for one token is refused, never cut.",
    advice="report the true context in BackendInfo.max_model_len; the SDK refuses what does not fit",
    needs=("token_prompts",),
)
async def prompt_must_fit(t: Context) -> None:
    token = (await t.engine.tokenize(t.prompt))[-1]
    with t.refused(InvalidRequest, field="prompt"):
        await t.generate([token] * t.engine.info.max_model_len)


@check(
    "requests.min-above-max",
    must="A `min_tokens` above `max_tokens` is refused.",
    advice=_SDK,
    needs=("request.min_tokens",),
)
async def min_above_max(t: Context) -> None:
    with t.refused(InvalidRequest, field="min_tokens"):
        await t.generate(max_tokens=4, min_tokens=5)


@check(
    "requests.token-ids-must-exist",
    must="Token ids outside the vocabulary are refused in the prompt.",
    advice="report the true size in BackendInfo.vocab_size",
    needs=("token_prompts",),
)
async def token_ids_must_exist(t: Context) -> None:
    for token in (t.engine.info.vocab_size, t.engine.info.vocab_size + 1000, 2**40):
        with t.refused(InvalidRequest, field="prompt"):
            await t.generate([1, token], max_tokens=1)


@check(
    "requests.stop-token-ids-must-exist",
    must="Token ids outside the vocabulary are refused in `stop_token_ids`.",
    advice="report the true size in BackendInfo.vocab_size",
    needs=("request.stop_token_ids",),
)
async def stop_token_ids_must_exist(t: Context) -> None:
    with t.refused(InvalidRequest, field="stop_token_ids"):
        await t.generate(stop_token_ids=[t.engine.info.vocab_size], max_tokens=1)


@check(
    "requests.half-characters", must="A text with half of a surrogate pair is refused as InvalidRequest.", advice=_SDK
)
async def half_characters(t: Context) -> None:
    with t.refused(InvalidRequest, field="prompt"):
        await t.generate("half of a character: \ud83d", max_tokens=1)


@check(
    "requests.template-kwargs-need-messages",
    must="`chat_template_kwargs` beside a plain prompt are refused: there is nothing that they could change.",
    advice=_SDK,
)
async def template_kwargs_need_messages(t: Context) -> None:
    with t.refused(InvalidRequest, field="chat_template_kwargs"):
        await t.generate(chat_template_kwargs={"enable_thinking": True}, max_tokens=1)


@check(
    "requests.refused-is-not-submitted",
    must="Of a call that is refused nothing reaches the engine: its counters stay.",
    advice="refuse in Backend.validate, before the engine sees the request",
    needs=("stats.prompt_tokens",),
)
async def refused_is_not_submitted(t: Context) -> None:
    before = (await t.stats()).prompt_tokens
    for options in ({"max_tokens": 0}, {"max_tokens": t.engine.info.max_model_len + 1}, {"n": 0}):
        with t.refused(InvalidRequest):
            await t.generate(**options)
    t.equal((await t.stats()).prompt_tokens, before, "prompt tokens that the engine has begun")


@check(
    "requests.list-is-checked-first",
    must="A list of prompts is checked as a whole before any of it starts; the error's field says which.",
    advice=_SDK,
)
async def list_is_checked_first(t: Context) -> None:
    before = (await t.stats()).prompt_tokens
    with t.refused(InvalidRequest, field="prompts[1].prompt"):
        await t.generate([PROMPTS[0], "half of a character: \ud83d", PROMPTS[2]], max_tokens=2)
    t.equal((await t.stats()).prompt_tokens, before, "prompt tokens that the engine has begun")


@check(
    "requests.list-keeps-order",
    must="A list of prompts gives one completion for each, in their order.",
    advice="keep what belongs to a request under its id",
)
async def list_keeps_order(t: Context) -> None:
    prompts = list(PROMPTS)
    answers = await t.generate(prompts, max_tokens=2)
    seen: Any = answers
    t.equal(
        [answer.prompt_token_ids for answer in seen],
        [await t.engine.tokenize(prompt) for prompt in prompts],
        "prompt_token_ids of the completions",
    )


@check(
    "requests.errors-in-their-place",
    must="With `return_exceptions` an error takes the place of its completion, and the others are generated.",
    advice=_SDK,
)
async def errors_in_their_place(t: Context) -> None:
    prompts = [PROMPTS[0], "half of a character: \ud83d", PROMPTS[1]]
    answers: Any = await t.generate(prompts, max_tokens=2, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, InvalidRequest):
            raise answer  # the engine's, which says itself what is wrong
    kinds = [type(answer).__name__ for answer in answers]
    t.equal(kinds, ["Completion", "InvalidRequest", "Completion"], "types of the results")
    t.equal(answers[1].field, "prompts[1].prompt", "field of the error")


@check(
    "requests.whole-request-means-the-same",
    must="A whole GenerateRequest asks for the same as its fields as keyword arguments.",
    advice="leave both ways in to the SDK",
)
async def whole_request_means_the_same(t: Context) -> None:
    t.asked("engine.generate(GenerateRequest(prompt=…, max_tokens=3, n=2))")
    answer = await t.engine.generate(GenerateRequest(prompt=t.prompt, max_tokens=3, n=2))
    t.equal(len(answer.choices), 2, "number of completions")
    t.expect(max(len(choice.token_ids) for choice in answer.choices) <= 3, expected="at most 3 tokens", seen=answer)


@check(
    "requests.undeclared-fields",
    must="Every request field that the engine does not declare is refused by its name.",
    advice="do not declare what is not mapped; what is not declared the SDK refuses",
)
async def undeclared_fields(t: Context) -> None:
    every = [f"sampling.{name}" for name in refusals.SAMPLING]
    every += [f"request.{name}" for name in refusals.REQUEST]
    every += [f"structured.{name}" for name in refusals.STRUCTURED]
    every += ["logprobs", "prompt_logprobs"]
    missing = [need for need in every if not declared(need, t.capabilities)]
    if not missing:
        raise t.skip("the engine declares every request field")
    for need in missing:
        await refusals.negative(t, need)


@check(
    "requests.undeclared-config",
    must="Every configuration field that the engine does not declare is refused at load by its name.",
    advice="do not declare what is not mapped; what is not declared the SDK refuses before load",
    variant=OWN,
    deadline=60,
)
async def undeclared_config(t: Context) -> None:
    known = t.described
    if known is None:
        raise t.skip("the plugin is not installed in this interpreter, so what it declares is not known before a load")
    missing = [need for name in refusals.CONFIG if not declared(need := f"config.{name}", known)]
    for need in missing:
        if parse(need).name != "task":  # which is declared by `embed`
            await refusals.negative(t, need)


@check(
    "requests.declared-conflicts",
    must="Two things that the engine declares possible, but not together, are refused together.",
    advice="declare conflicts by the dotted names that the SDK knows, or drop those that are gone",
)
async def declared_conflicts(t: Context) -> None:
    tried = 0
    for conflict in t.capabilities.conflicts:
        names = [_need(side) for side in (conflict.first, conflict.second)]
        if None in names or any(name.startswith("config.") for name in (conflict.first, conflict.second)):
            continue  # what belongs to a load is tested where that is loaded
        tried += 1
        with t.refused(UnsupportedParameter, advice=f"the plugin declares: {conflict.reason}"):
            await refusals.ask(t, tuple(str(name) for name in names))
    if not tried:
        raise t.skip("the engine declares no conflict between fields of a request")


def _need(side: str) -> str | None:
    """The capability expression of one side of a conflict."""
    if side == "request.structured":
        return "structured.regex"
    if side in ("request.logprobs", "request.prompt_logprobs"):
        return side.removeprefix("request.")
    return side if side.split(".", maxsplit=1)[0] in ("sampling", "request") else None
