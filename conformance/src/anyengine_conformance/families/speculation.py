"""Speculative decoding: it changes how fast tokens come, never which.

Greedy: teacher-forced, as in `parity`; the tokens are those without speculation up to the first near-tie. Sampled: 512
completions of 4 tokens over an alphabet of two, behind a prompt that makes the draft propose, against the exact joint
distribution of 16 cells (chi-square, `_exact.py`); each of the two methods has 0.05 of the false-alarm budget, power
over 95% against a draft whose tokens are kept without verification (`conformance/tests/test_sampling_power.py`). What
is drafted and kept is read from the engine's own counters, so that nothing passes because no draft was ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams, UnsupportedParameter

from anyengine_conformance.at_once import together
from anyengine_conformance.check import check, family, variant
from anyengine_conformance.families import _kinds as kinds
from anyengine_conformance.families._exact import draws, judge
from anyengine_conformance.families._forced import answer_of, forced, forced_all, near_tie
from anyengine_conformance.families._numbers import open_prompt
from anyengine_conformance.families.sampling import sequences
from anyengine_conformance.refusals import ask

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable

    from anyengine import Completion, EngineStats

    from anyengine_conformance.context import Context

family("speculation", "Speculative decoding")

NGRAM = variant("ngram", needs=("speculative.ngram",), speculative={"method": "ngram", "num_speculative_tokens": 4})
DRAFT = variant(
    "draft-model",
    needs=("speculative.draft_model",),
    only_for="storyteller",
    speculative={"method": "draft_model", "model": "storyteller-draft", "num_speculative_tokens": 4},
)
_METHODS = {"ngram": NGRAM, "draft": DRAFT}

_LENGTH = 40
_DRAWS = 512
_GREEDY = ("sampling.temperature",)
_FORCED = "near-ties of the data type, as in parity"
_ADVICE = (
    "verify: keep a drafted token with probability min(1, p/q), else draw from the positive part of p - q "
    "(arXiv:2211.17192); greedy keeps a draft only where it is the target's argmax"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    name: str
    must: str
    advice: str
    function: Callable[[Context], Awaitable[None]]
    needs: tuple[str, ...] = ()
    tolerance: str = ""
    methods: tuple[str, ...] = ("ngram", "draft")


async def _greedy(t: Context) -> list[Completion]:
    """What the model repeats, and what it does not."""
    prompts = (*kinds.REPETITIVE, *kinds.PLAIN[:2])
    return [await t.generate(prompt, max_tokens=_LENGTH, **t.unending) for prompt in prompts]


def _ends(t: Context) -> tuple[int, ...] | None:
    return () if t.unending else None


async def _greedy_is_the_models(t: Context) -> None:
    answers = await t.once("speculation.greedy", lambda: _greedy(t))
    await forced_all(t, answers, ends=_ends(t), max_tokens=_LENGTH)


async def _batch_is_the_models(t: Context) -> None:
    prompts = [*kinds.REPETITIVE * 2, *kinds.DISTINCT[:8]]
    t.asked(f"{len(prompts)} times engine.generate(…, max_tokens=20) at once, greedy and sampled")
    sampled = SamplingParams(temperature=1.3)
    calls = [answer_of(t, prompt, max_tokens=20, sampling=t.greedy, **t.unending) for prompt in prompts]
    hot = [answer_of(t, prompt, max_tokens=11, sampling=sampled, **t.unending) for prompt in prompts[:5]]
    answers = (await together([*calls, *hot]))[: len(calls)]
    await forced_all(t, answers, ends=_ends(t), max_tokens=20)


async def _draws_follow_the_model(t: Context) -> None:
    ids, top = await open_prompt(t)
    alphabet = [token for token in top if token not in t.engine.model.eos_token_ids][:2]
    # The past has every continuation of the last two tokens, so that n-grams propose something.
    ids = [*ids, *(alphabet[bit] for bit in (0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0))]
    expected = await sequences(t, ids, alphabet, 4, lambda _token, _before: 0.0)

    async def sample(number: int) -> Counter[tuple[int, ...]]:
        return await draws(t, ids, SamplingParams(allowed_token_ids=alphabet), _DRAWS, number, length=4)

    told = "sequences of 4 tokens with the target model's joint probability"
    await judge(t, expected, sample, slack=4 * near_tie(t), told=told)


async def _worked(t: Context) -> EngineStats:
    """Statistics after text in which drafts are good."""
    await t.once("speculation.greedy", lambda: _greedy(t))
    return await t.settled(lambda stats: bool(stats.speculative and stats.speculative.accepted_tokens))


async def _drafts_are_kept(t: Context) -> None:
    stats = (await _worked(t)).speculative
    drafted, kept = (stats.drafted_tokens or 0, stats.accepted_tokens or 0) if stats else (0, 0)
    t.expect(
        drafted > 0 and kept > 0,
        expected="drafted and accepted tokens above 0 after repetitive text",
        seen=f"drafted {drafted}, accepted {kept}",
    )


async def _counters_add_up(t: Context) -> None:
    whole = await _worked(t)
    stats = whole.speculative
    if stats is None or stats.drafted_tokens is None or stats.accepted_tokens is None:
        raise t.fail(expected="stats.speculative with drafted and accepted tokens", seen=stats)
    drafted, kept = stats.drafted_tokens, stats.accepted_tokens
    t.expect(kept <= drafted, expected="accepted at most drafted", seen=f"{kept} of {drafted}")
    if stats.drafts is not None:
        most = stats.drafts * 4
        t.expect(
            stats.drafts <= drafted <= most,
            expected=f"1 to 4 tokens drafted in each of {stats.drafts} drafts",
            seen=f"{drafted} tokens",
        )
    if stats.accepted_per_position is not None:
        counts = list(stats.accepted_per_position)
        t.equal(sum(counts), kept, "the sum of accepted_per_position, which is accepted_tokens")
        t.expect(
            counts == sorted(counts, reverse=True) and len(counts) <= 4,
            expected="at most 4 counts, none above the one before: a later token is kept only behind the earlier ones",
            seen=counts,
        )
    if whole.generated_tokens is not None:
        t.expect(
            kept <= whole.generated_tokens,
            expected="accepted tokens among the generated ones",
            seen=f"{kept} accepted, {whole.generated_tokens} generated",
        )


async def _stops_inside_a_run(t: Context) -> None:
    prompt = kinds.REPETITIVE[0]
    for count in range(1, 8):
        answer = await t.generate(prompt, max_tokens=count, **t.unending)
        t.expect(
            len(answer.token_ids) == answer.usage.completion_tokens <= count,
            expected=f"at most {count} tokens, and usage as many",
            seen=f"{len(answer.token_ids)}, usage {answer.usage.completion_tokens}",
        )
        await forced(t, answer, what=f"with max_tokens={count}", ends=_ends(t), max_tokens=count)
    plain = await t.generate(prompt, max_tokens=16, **t.unending)
    for place in (3, 4, 5, 6):
        stop = (await t.engine.detokenize(plain.token_ids[: place + 1])).strip()[-2:]
        answer = await t.generate(prompt, max_tokens=16, stop=[stop], **t.unending)
        whole = await t.engine.detokenize(answer.token_ids)
        before = await t.engine.detokenize(answer.token_ids[:-1])
        good = stop not in answer.text and stop not in before and (stop in whole or answer.finish_reason != "stop")
        t.expect(good, expected=f"an end at the token that completes {stop!r}", seen=f"{whole!r}, text {answer.text!r}")
        if "stop_token_ids" in t.capabilities.request:
            token = plain.token_ids[place]
            answer = await t.generate(prompt, max_tokens=16, stop_token_ids=[token], **t.unending)
            seen = (answer.finish_reason, answer.stop_reason, answer.token_ids.count(token))
            good = seen == ("stop", token, 1) and answer.token_ids[-1] == token
            good = good or (token not in answer.token_ids and answer.finish_reason == "length")
            t.expect(good, expected=f"an end at the first {token}", seen=f"{seen}, tokens {answer.token_ids}")


async def _min_tokens_holds(t: Context) -> None:
    prompt = kinds.REPETITIVE[0]
    plain = await t.generate(prompt, max_tokens=16, **t.unending)
    stops = sorted(set(plain.token_ids[:8]))
    for least in (3, 6):
        answer = await t.generate(prompt, max_tokens=16, min_tokens=least, stop_token_ids=stops, **t.unending)
        early = [token for token in answer.token_ids[:least] if token in stops]
        t.expect(
            not early and len(answer.token_ids) >= least,
            expected=f"none of {stops} among the first {least} tokens",
            seen=answer.token_ids,
        )


async def _logprobs_are_the_models(t: Context) -> None:
    answers = [await t.generate(prompt, max_tokens=24, logprobs=1, **t.unending) for prompt in kinds.REPETITIVE[:2]]
    for answer in answers:
        entries = answer.logprobs or []
        t.equal([entry.token_id for entry in entries], answer.token_ids, "token ids of the log-probabilities")
    judged = await forced_all(t, answers, ends=_ends(t))
    error, most = sum(judged.errors) / len(judged.errors), t.tolerance(near_tie(t))
    t.expect(error <= most, expected=f"a mean error of at most {most:g} nats", seen=f"{error:.4f}")


async def _seeds_vary(t: Context) -> None:
    answer = await t.generate(kinds.PLAIN[0], n=6, max_tokens=24, sampling=SamplingParams(seed=5), **t.unending)
    t.equal([one.seed for one in answer.choices], list(range(5, 11)), "seeds of the completions")
    t.expect(
        len({tuple(one.token_ids) for one in answer.choices}) > 1,
        expected="different tokens with 6 seeds",
        seen=answer.token_ids,
    )


async def _usage_counts(t: Context) -> None:
    for prompt in kinds.REPETITIVE:
        streamed = await t.stream(prompt, max_tokens=17, ignore_eos=True)
        finish: Any = streamed.finish
        t.equal(len(streamed.token_ids), 17, "tokens in all chunks")
        t.equal(finish.usage.completion_tokens, 17, "usage.completion_tokens")
        wanted = await t.engine.detokenize(streamed.token_ids)
        t.equal(streamed.text, wanted, "text of all chunks, and the decoding of all tokens")


for _rule in (
    _Rule(
        name="greedy-is-the-models",
        must="With a draft by {}, each greedy token is the target model's best, as without, up to near-ties.",
        advice=_ADVICE,
        function=_greedy_is_the_models,
        needs=_GREEDY,
        tolerance=_FORCED,
    ),
    _Rule(
        name="batch-is-the-models",
        must="With a draft by {}, each greedy token in a batch is the target model's best, up to near-ties.",
        advice="sequences of a batch keep different numbers of drafted tokens: advance each by its own",
        function=_batch_is_the_models,
        needs=_GREEDY,
        tolerance=_FORCED,
    ),
    _Rule(
        name="draws-follow-the-model",
        must="With a draft by {}, sampled tokens have the target model's joint distribution.",
        advice=_ADVICE,
        function=_draws_follow_the_model,
        needs=("sampling.allowed_token_ids", "token_prompts"),
        tolerance="chance: Monte Carlo chi-square test over 16 sequences within the near-tie gap, 512 draws, confirmed "
        "on 512 more; share 0.05 of the budget, power over 95%",
    ),
    _Rule(
        name="drafts-are-kept",
        must="On repetitive text, tokens are drafted by {} and accepted.",
        advice="a draft that is never made or never kept is no speculation; check that the proposer is wired up",
        function=_drafts_are_kept,
        needs=(*_GREEDY, "stats.speculative.drafted_tokens", "stats.speculative.accepted_tokens"),
    ),
    _Rule(
        name="counters-add-up",
        must="Counters of drafts by {} add up: accepted at most drafted, and the positions' sum is what was accepted.",
        advice="count at verification: drafted tokens once, accepted ones by position, positions never ascending",
        function=_counters_add_up,
        needs=(*_GREEDY, "stats.speculative.drafted_tokens", "stats.speculative.accepted_tokens"),
        methods=("ngram",),
    ),
    _Rule(
        name="stops-inside-a-run",
        must="max_tokens, stop strings and stop tokens hold within a run of accepted tokens drafted by {}.",
        advice="look at every accepted token by itself, and discard what was accepted beyond the first that ends it",
        function=_stops_inside_a_run,
        needs=_GREEDY,
    ),
    _Rule(
        name="min-tokens-holds",
        must="min_tokens holds within a run of tokens drafted by {}.",
        advice="ban terminators at each position of a draft by that position, not by the length before the draft",
        function=_min_tokens_holds,
        needs=(*_GREEDY, "request.min_tokens", "request.stop_token_ids"),
        methods=("ngram",),
    ),
    _Rule(
        name="logprobs-are-the-models",
        must="Log-probabilities of tokens drafted by {} are the target model's, one for each token.",
        advice="take them from the target's logits at the token's own position in the verification",
        function=_logprobs_are_the_models,
        needs=(*_GREEDY, "logprobs.raw"),
        tolerance="mean absolute error within the near-tie gap",
        methods=("ngram",),
    ),
    _Rule(
        name="seeds-vary",
        must="With a draft by {}, different seeds give different tokens, and each completion says its own.",
        advice="verification draws from the request's own generator",
        function=_seeds_vary,
        needs=("sampling.seed",),
        tolerance="chance: six equal texts have a probability below the check's share by far",
        methods=("ngram",),
    ),
    _Rule(
        name="usage-counts",
        must="With a draft by {}, usage and stream count the tokens of the answer, not those of drafts.",
        advice="yield only what was accepted and not cut; several tokens in one delta are fine",
        function=_usage_counts,
        needs=("request.ignore_eos",),
        methods=("ngram",),
    ),
):
    for _method in _rule.methods:
        check(
            f"speculation.{_method}-{_rule.name}",
            must=_rule.must.format({"ngram": "n-grams", "draft": "a draft model"}[_method]),
            advice=_rule.advice,
            tier="extension",
            needs=_rule.needs,
            variant=_METHODS[_method],
            deadline=90,
            tolerance=_rule.tolerance,
        )(_rule.function)


@check(
    "speculation.conflicts-are-refused",
    must="What is declared to conflict with speculation is refused before anything is computed, by its field.",
    advice="leave conflicts to the SDK, which refuses them; do not declare one that is no conflict",
    tier="extension",
    variant=NGRAM,
)
async def conflicts_are_refused(t: Context) -> None:
    found = [
        other
        for conflict in t.capabilities.conflicts
        for one, other in ((conflict.first, conflict.second), (conflict.second, conflict.first))
        if one.startswith("config.speculative") and other.startswith(("sampling.", "request."))
    ]
    if not found:
        raise t.skip("no sampling or request field is declared to conflict with speculation")
    for name in found:
        expression = {"request.logprobs": "logprobs", "request.structured": "structured.regex"}.get(name, name)
        with t.refused(UnsupportedParameter):
            await ask(t, (expression,))
