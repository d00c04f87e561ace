"""Log-probabilities together with the rest of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams, UnsupportedParameter

from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.families.logprobs import (
    LENGTH,
    ORACLE,
    close_to_oracle,
    completion_is_close,
    entries_of,
    sampled,
)

if TYPE_CHECKING:
    from anyengine.outputs import TokenLogprobs

    from anyengine_conformance.context import Context

family("logprobs", "Log-probabilities")


def _shaped(t: Context) -> dict[str, Any]:
    """Sampling parameters that change what is drawn, as far as the engine has them."""
    wanted: dict[str, Any] = {"temperature": 0.4, "top_k": 4, "top_p": 0.8, "repetition_penalty": 1.5}
    return {name: value for name, value in wanted.items() if name in t.capabilities.sampling}


@check(
    "logprobs.raw-at-any-temperature",
    must="Log-probabilities are of the model's own distribution, whatever temperature, top_k, top_p and penalties are.",
    advice=ORACLE + "; if the engine cannot, declare the level 'neutral-only'",
    needs=("logprobs.raw", "sampling.temperature"),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def raw_at_any_temperature(t: Context) -> None:
    plain = [SamplingParams(temperature=temperature) for temperature in (0.4, 1.9, 0.0)]
    for sampling in (*plain, SamplingParams(**_shaped(t))):
        answer = await t.generate(max_tokens=LENGTH, logprobs=1, sampling=sampling)
        await completion_is_close(t, answer)


@check(
    "logprobs.raw-under-bias",
    must="Log-probabilities are of the model's own distribution where `logit_bias` forces other tokens.",
    advice=ORACLE + "; if the engine cannot, declare the level 'neutral-only'",
    needs=("logprobs.raw", "sampling.logit_bias"),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def raw_under_bias(t: Context) -> None:
    (answer, *_) = await sampled(t)
    forced = SamplingParams(logit_bias={answer.token_ids[0]: 100.0})
    again = await t.generate(max_tokens=6, logprobs=1, sampling=forced, **t.unending)
    entries = entries_of(t, again)
    # Forced again and again, the same tokens become unlikely; a raw value then says so.
    t.expect(
        min(entry.logprob for entry in entries) < -0.5,
        expected="raw log-probabilities: a token that is forced everywhere is not certain everywhere",
        seen=[entry.logprob for entry in entries],
    )
    await completion_is_close(t, again)


@check(
    "logprobs.greedy-is-the-top",
    must="A greedy token is the first of its entry's `top`, up to near-ties.",
    advice="draw and report from the same logits",
    needs=("logprobs.raw", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def greedy_is_the_top(t: Context) -> None:
    for prompt in PROMPTS:
        answer = await t.generate(prompt, max_tokens=LENGTH, logprobs=2 if t.capabilities.max_logprobs > 1 else 1)
        for entry in entries_of(t, answer):
            best = max(entry.top.values())
            t.expect(
                entry.logprob >= best - t.gap,
                expected=f"the most likely token of {entry.top}",
                seen=f"{entry.token_id} with {entry.logprob}",
            )


@check(
    "logprobs.stream-has-them",
    must="Every chunk of a stream has one entry for each of its tokens, with the model's values.",
    advice="put the entries into the same TokenDelta as their tokens",
    needs=("logprobs",),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def stream_has_them(t: Context) -> None:
    streamed = await t.stream(max_tokens=LENGTH, logprobs=1, sampling=SamplingParams())
    entries: list[TokenLogprobs] = []
    for chunk in streamed.chunks:
        t.equal([entry.token_id for entry in chunk.logprobs or ()], chunk.token_ids, "token ids of a chunk's entries")
        entries += chunk.logprobs or ()
    ids = [*await t.engine.tokenize(t.prompt), *streamed.token_ids]
    await close_to_oracle(t, ids, entries)


@check(
    "logprobs.with-choices",
    must="With `n` each completion has the entries of its own tokens.",
    advice="keep the entries under the id of their request",
    needs=("logprobs",),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def with_choices(t: Context) -> None:
    answer = await t.generate(n=3, max_tokens=LENGTH, logprobs=1, sampling=SamplingParams())
    for choice in answer.choices:
        await completion_is_close(t, choice)


@check(
    "logprobs.end-with-the-stop",
    must="Where a stop string ends the completion, the entries end with its tokens.",
    advice="stop strings are the SDK's, which cuts tokens and entries together",
    needs=("logprobs",),
    tier="extension",
)
async def end_with_the_stop(t: Context) -> None:
    answer = await t.generate(
        max_tokens=4 * LENGTH, logprobs=1, sampling=SamplingParams(), stop=["e", "a", "o", "t"], **t.unending
    )
    if answer.finish_reason != "stop":
        raise t.skip("the model wrote neither e nor a, o, t")
    entries_of(t, answer)


@check(
    "logprobs.with-structured",
    must="With a constraint log-probabilities are still the model's own, or the two are refused together.",
    advice="the level says it: 'raw' where the mask comes after, 'raw-unless-structured' where the grammar comes first",
    needs=("logprobs", "structured.regex"),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def with_structured(t: Context) -> None:
    options: dict[str, Any] = {"structured": {"regex": "[0-9]{6}"}, "sampling": SamplingParams(), "max_tokens": 12}
    if t.capabilities.logprobs != "raw":
        with t.refused(UnsupportedParameter):
            await t.generate(logprobs=1, **options)
        return
    answer = await t.generate(logprobs=1, **options)
    await completion_is_close(t, answer)
    # Digits do not follow this prompt by themselves.
    first = entries_of(t, answer)[0].logprob
    t.expect(first < -1, expected="a first digit that the model itself finds unlikely", seen=f"log-probability {first}")
