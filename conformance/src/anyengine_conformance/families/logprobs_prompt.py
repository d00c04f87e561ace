"""Log-probabilities of a text that is given: of the prompt, and by ``engine.score``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams, UnsupportedParameter
from anyengine.request import MAX_LOGPROBS

from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.families.logprobs import close_to_oracle

if TYPE_CHECKING:
    from anyengine import Completion

    from anyengine_conformance.context import Context

family("logprobs", "Log-probabilities")


async def _prompted(t: Context) -> list[Completion]:
    """Completions of one token, with the log-probabilities of their prompts."""

    async def ask() -> list[Completion]:
        count = min(3, t.capabilities.most_prompt_logprobs)
        return [
            await t.generate(prompt, max_tokens=1, prompt_logprobs=count, sampling=SamplingParams())
            for prompt in PROMPTS[:3]
        ]

    return await t.once("logprobs.prompted", ask)


@check(
    "logprobs.prompt-is-aligned",
    must="`prompt_logprobs` has one entry a token of the prompt; the first is None, as nothing comes before it.",
    advice="shift the logits by one: those at position i are of token i + 1",
    needs=("prompt_logprobs",),
    tier="extension",
)
async def prompt_is_aligned(t: Context) -> None:
    for answer in await _prompted(t):
        entries = answer.prompt_logprobs or []
        ids = [None, *answer.prompt_token_ids[1:]]
        t.equal([None if entry is None else entry.token_id for entry in entries], ids, "token ids of the entries")


@check(
    "logprobs.prompt-is-the-models",
    must="The log-probabilities of the prompt are the model's, by the oracle.",
    advice="take them from the logits of the prefill, all positions; a cached prefix has to be computed again",
    needs=("prompt_logprobs",),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def prompt_is_the_models(t: Context) -> None:
    for answer in await _prompted(t):
        await close_to_oracle(t, answer.prompt_token_ids, answer.prompt_logprobs or [])


@check(
    "logprobs.prompt-has-alternatives",
    must="Entries of the prompt have the token itself and the alternatives asked for, sorted, adding up to at most 1; "
    "more than `max_prompt_logprobs` says are refused.",
    advice="make the prompt's entries by the code that makes the completion's; declare in max_prompt_logprobs where an "
    "engine gives fewer for prompts",
    needs=("prompt_logprobs",),
    tier="extension",
)
async def prompt_has_alternatives(t: Context) -> None:
    most = t.capabilities.most_prompt_logprobs
    count = min(3, most)
    for answer in await _prompted(t):
        for entry in (answer.prompt_logprobs or [])[1:]:
            if entry is None:
                raise t.fail(expected="an entry for every token but the first", seen="None")
            values = list(entry.top.values())
            good = (
                entry.top.get(entry.token_id) == entry.logprob
                and values == sorted(values, reverse=True)
                and len(values) in (count, count + 1)
                and math.fsum(map(math.exp, values)) <= 1 + 1e-3
            )
            t.expect(good, expected=f"{entry.token_id} with {entry.logprob}, and {count} alternatives", seen=entry.top)
    if most < MAX_LOGPROBS:
        with t.refused(UnsupportedParameter, field="prompt_logprobs"):
            await t.generate(max_tokens=1, prompt_logprobs=most + 1, sampling=SamplingParams())


@check(
    "logprobs.prompt-cached-or-not",
    must="The log-probabilities of a prompt are complete when it was there before, too.",
    advice="do not take such a prompt from the prefix cache, or keep its log-probabilities with it",
    needs=("prompt_logprobs",),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def prompt_cached_or_not(t: Context) -> None:
    prompt = " ".join(PROMPTS)
    for _ in range(2):
        answer = await t.generate(prompt, max_tokens=1, prompt_logprobs=0, sampling=SamplingParams())
        entries = answer.prompt_logprobs or []
        missing = [place for place, entry in enumerate(entries) if entry is None]
        t.equal((len(entries), missing), (len(answer.prompt_token_ids), [0]), "(entries, places without one)")
        await close_to_oracle(t, answer.prompt_token_ids, entries)


@check(
    "logprobs.prompt-in-streams",
    must="Streams of several tokens, and completions with a stop string, end with the prompt's log-probabilities too.",
    advice="keep them from the step that computes them until the finish: an engine has none in its later outputs",
    needs=("prompt_logprobs",),
    tier="extension",
)
async def prompt_in_streams(t: Context) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "prompt_logprobs": 0, "sampling": SamplingParams(), **t.unending}
    ids = [None, *(await t.engine.tokenize(t.prompt))[1:]]
    finish = (await t.stream(**asked)).finish
    answer = await t.generate(stop=["no model says this"], **asked)
    for what, entries in (
        ("a stream", None if finish is None else finish.prompt_logprobs),
        ("a completion with a stop string", answer.prompt_logprobs),
    ):
        seen = [None if entry is None else entry.token_id for entry in entries or []]
        t.equal(seen, ids, f"token ids of the prompt's entries of {what}")


@check(
    "logprobs.score-is-aligned",
    must="`engine.score` gives one entry a token, the first None, and sums that add up.",
    advice="score the ids as they come: entries[i] is of token i given those before it",
    needs=("score",),
    tier="extension",
)
async def score_is_aligned(t: Context) -> None:
    for prompt in PROMPTS[:2]:
        ids = await t.engine.tokenize(prompt)
        t.asked(f"engine.score({prompt!r})")
        score = await t.engine.score(prompt)
        t.equal(score.token_ids, ids, "score.token_ids")
        seen = [None if entry is None else entry.token_id for entry in score.entries]
        t.equal(seen, [None, *ids[1:]], "token ids of the entries")
        t.equal(len(score.logprobs), len(ids) - 1, "number of score.logprobs")
        total = math.fsum(score.logprobs)
        t.expect(abs(score.total - total) < 1e-6 * len(ids), expected=f"score.total {total}", seen=score.total)


@check(
    "logprobs.score-is-the-models",
    must="`engine.score` gives the model's log-probabilities, by the oracle.",
    advice="score with the weights and the tokens that generate uses",
    needs=("score",),
    tolerance="the mean, and six times it for one value",
    tier="extension",
)
async def score_is_the_models(t: Context) -> None:
    for prompt in PROMPTS[:3]:
        t.asked(f"engine.score({prompt!r}, logprobs=0)")
        score = await t.engine.score(prompt)
        await close_to_oracle(t, score.token_ids, score.entries)


@check(
    "logprobs.score-agrees-with-generate",
    must="`engine.score` of prompt and completion agrees with the log-probabilities that `generate` gave.",
    advice="compute both from the same logits, in the same data type",
    needs=("score", "logprobs", "token_prompts"),
    tolerance="twice the mean that the data type is off",
    tier="extension",
)
async def score_agrees_with_generate(t: Context) -> None:
    answer = await t.generate(max_tokens=24, logprobs=0, sampling=SamplingParams())
    t.asked("engine.score(prompt_token_ids + token_ids)")
    score = await t.engine.score([*answer.prompt_token_ids, *answer.token_ids])
    again = [entry.logprob for entry in score.entries[len(answer.prompt_token_ids) :] if entry is not None]
    given = [entry.logprob for entry in answer.logprobs or ()]
    t.equal(len(again), len(given), "number of entries")
    mean = math.fsum(abs(one - other) for one, other in zip(again, given, strict=True)) / len(given)
    t.expect(
        mean <= 2 * t.precision,
        expected=f"log-probabilities within {2 * t.precision:g} nats of one another on average",
        seen=f"{mean:.4f} nats: {given} and {again}",
    )
