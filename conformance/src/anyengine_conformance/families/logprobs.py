"""Log-probabilities: aligned with the tokens, complete, and those of the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anyengine import SamplingParams, UnsupportedParameter

from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine import Completion
    from anyengine.outputs import TokenLogprobs

    from anyengine_conformance.context import Context

family("logprobs", "Log-probabilities")

LENGTH = 16
#: Less likely tokens, in nats, are left out of a mean: there the data type's rounding is larger than elsewhere.
_SELDOM = -12.0
#: So many times the mean that one token may be off.
_ONE = 6
ORACLE = (
    "read log-probabilities as z - log(sum(exp(z))) of the model's own logits, before penalties, bias, masks and "
    "temperature (vLLM: logprobs_mode='raw_logprobs')"
)


def entries_of(t: Context, answer: Completion) -> list[TokenLogprobs]:
    """Those of a completion, one a token."""
    if answer.logprobs is None:
        raise t.fail(expected="logprobs, as asked for", seen="None")
    t.equal([entry.token_id for entry in answer.logprobs], answer.token_ids, "token ids of the entries")
    return answer.logprobs


async def sampled(t: Context) -> list[Completion]:
    """A few completions with the alternatives that every engine has, drawn without any other sampling parameter."""

    async def draw() -> list[Completion]:
        count = min(5, t.capabilities.max_logprobs)
        return [
            await t.generate(prompt, max_tokens=LENGTH, logprobs=count, sampling=SamplingParams()) for prompt in PROMPTS
        ]

    return await t.once("logprobs.sampled", draw)


async def close_to_oracle(
    t: Context, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], *, alternatives: bool = False
) -> None:
    """Values agree with the oracle's, on average within the tolerance, and none is far off."""
    oracle = await t.oracle()
    count = min(50, t.engine.info.vocab_size) if alternatives else 0
    score = await oracle.score(ids, logprobs=count)
    pairs: list[tuple[int, int, float, float]] = []
    for place, (seen, known) in enumerate(zip(entries, score.entries[len(ids) - len(entries) :], strict=True)):
        if seen is None or known is None:
            continue
        values = seen.top if alternatives else {seen.token_id: seen.logprob}
        exact = known.top if alternatives else {known.token_id: known.logprob}
        pairs += [(place, token, value, exact[token]) for token, value in values.items() if token in exact]
    likely = [(*pair, abs(pair[2] - pair[3])) for pair in pairs if pair[3] > _SELDOM]
    if not likely:
        return
    mean = math.fsum(pair[4] for pair in likely) / len(likely)
    worst = max(likely, key=lambda pair: pair[4])
    told = f"; farthest off: entry {worst[0]}, token {worst[1]}, {worst[2]:.4f} instead of {worst[3]:.4f}"
    t.expect(
        mean <= t.precision,
        expected=f"log-probabilities that are off those of {oracle.name} by {t.precision:g} nats or less on average",
        seen=f"{mean:.4f} nats over {len(likely)} values{told}",
    )
    t.expect(
        worst[4] <= _ONE * t.precision,
        expected=f"no log-probability off that of {oracle.name} by more than {_ONE * t.precision:g} nats",
        seen=f"{worst[4]:.4f} nats{told}",
    )


async def completion_is_close(t: Context, answer: Completion, *, alternatives: bool = False) -> None:
    ids = [*answer.prompt_token_ids, *answer.token_ids]
    await close_to_oracle(t, ids, entries_of(t, answer), alternatives=alternatives)


@check(
    "logprobs.one-entry-a-token",
    must="There is one entry for each token of `token_ids`, the terminating one included, in their order.",
    advice="send an entry with every token of a delta; speculative tokens need theirs too",
    needs=("logprobs",),
    tier="extension",
)
async def one_entry_a_token(t: Context) -> None:
    for answer in await sampled(t):
        entries_of(t, answer)
    for most in (1, 33):
        entries_of(t, await t.generate(max_tokens=most, logprobs=0, sampling=SamplingParams()))


@check(
    "logprobs.end-token-has-its-entry",
    must="The end-of-sequence token that ends a completion has its entry too.",
    advice="send the entry of the terminating token; engines often drop it with its text",
    needs=("logprobs.raw", "sampling.logit_bias"),
    tier="extension",
)
async def end_token_has_its_entry(t: Context) -> None:
    token = min(t.engine.model.eos_token_ids, default=t.engine.info.vocab_size)
    if token >= t.engine.info.vocab_size:
        raise t.skip("the model has no end-of-sequence token that it can draw")
    forced = SamplingParams(logit_bias={token: 100.0})
    answer = await t.generate(max_tokens=4, logprobs=1, sampling=forced)
    t.equal(answer.token_ids, [token], "token ids, where the end is all but certain")
    entries_of(t, answer)


@check(
    "logprobs.chosen-is-present",
    must="`top` has the token itself, with the same log-probability as the entry.",
    advice="add the chosen token to the most likely ones where it is not among them",
    needs=("logprobs",),
    tier="extension",
)
async def chosen_is_present(t: Context) -> None:
    for answer in await sampled(t):
        for entry in entries_of(t, answer):
            t.equal(entry.top.get(entry.token_id), entry.logprob, f"top[{entry.token_id}], which is the chosen token")


@check(
    "logprobs.at-most-zero",
    must="Every log-probability is a finite number, at most 0.",
    advice="give natural logarithms of probabilities, not logits, not probabilities; leave out what has none",
    needs=("logprobs",),
    tier="extension",
)
async def at_most_zero(t: Context) -> None:
    for answer in await sampled(t):
        wrong = [value for entry in entries_of(t, answer) for value in entry.top.values() if not -math.inf < value <= 0]
        t.expect(not wrong, expected="finite values, at most 0", seen=wrong)


@check(
    "logprobs.top-is-sorted",
    must="`top` is in order, most likely first, the chosen token in its place.",
    advice="sort by log-probability after the chosen token was added",
    needs=("logprobs",),
    tier="extension",
)
async def top_is_sorted(t: Context) -> None:
    for answer in await sampled(t):
        for entry in entries_of(t, answer):
            values = list(entry.top.values())
            t.equal(values, sorted(values, reverse=True), "log-probabilities in the order of `top`")


@check(
    "logprobs.so-many-alternatives",
    must="`logprobs=k` gives the k most likely tokens, and the chosen one beside them if it is none of these.",
    advice="ask the engine for k; 0 is the chosen token only, which some engines take for 'off' or for 1",
    needs=("logprobs",),
    tier="extension",
)
async def so_many_alternatives(t: Context) -> None:
    for count in (0, 1, min(5, t.capabilities.max_logprobs)):
        answer = await t.generate(max_tokens=LENGTH, logprobs=count, sampling=SamplingParams())
        for entry in entries_of(t, answer):
            others = sorted((value for token, value in entry.top.items() if token != entry.token_id), reverse=True)
            # Among the k most likely, or one more behind them.
            beside = len(others) == count and (not others or entry.logprob <= others[-1])
            t.expect(
                beside or len(entry.top) == max(count, 1),
                expected=f"the {count} most likely tokens, and {entry.token_id}, the chosen one, with or beside them",
                seen=entry.top,
            )


@check(
    "logprobs.mass-at-most-one",
    must="The probabilities of an entry add up to at most 1.",
    advice="normalise over the whole vocabulary, in float32",
    needs=("logprobs",),
    tier="extension",
)
async def mass_at_most_one(t: Context) -> None:
    most = min(t.capabilities.max_logprobs, 100, t.engine.info.vocab_size)
    # Several, for an engine that rounds: whether one entry is above 1 is chance then.
    masses: list[float] = []
    for seed in range(8):
        sampling = SamplingParams(seed=seed) if "seed" in t.capabilities.sampling else SamplingParams()
        answer = await t.generate(max_tokens=LENGTH, logprobs=most, sampling=sampling)
        masses += [math.fsum(map(math.exp, entry.top.values())) for entry in entries_of(t, answer)]
    t.expect(max(masses) <= 1 + 1e-3, expected="sums of probabilities of at most 1", seen=max(masses))


@check(
    "logprobs.most-alternatives-are-given",
    must="As many alternatives as `max_logprobs` says are given; one more is refused.",
    advice="declare in max_logprobs what the engine was loaded with (vLLM: max_logprobs), and no more",
    needs=("logprobs",),
    tier="extension",
)
async def most_alternatives_are_given(t: Context) -> None:
    declared = t.capabilities.max_logprobs
    most = min(declared, 1000, t.engine.info.vocab_size)
    answer = await t.generate(max_tokens=2, logprobs=most, sampling=SamplingParams())
    for entry in entries_of(t, answer):
        t.expect(len(entry.top) in (most, most + 1), expected=f"{most} alternatives", seen=len(entry.top))
    if declared < 1000:
        with t.refused(UnsupportedParameter, field="logprobs"):
            await t.generate(max_tokens=2, logprobs=declared + 1, sampling=SamplingParams())


@check(
    "logprobs.are-the-models",
    must="The log-probabilities of drawn tokens are the model's, by the oracle.",
    advice=ORACLE,
    needs=("logprobs",),
    tolerance="the mean, and six times it for one value; see [tolerances]",
    tier="extension",
)
async def are_the_models(t: Context) -> None:
    for answer in await sampled(t):
        await completion_is_close(t, answer)


@check(
    "logprobs.alternatives-are-the-models",
    must="The alternatives are the model's most likely tokens, with its log-probabilities, by the oracle.",
    advice=ORACLE,
    needs=("logprobs",),
    tolerance="the mean, and six times it for one value; near-ties at the edge",
    tier="extension",
)
async def alternatives_are_the_models(t: Context) -> None:
    oracle = await t.oracle()
    for answer in await sampled(t):
        await completion_is_close(t, answer, alternatives=True)
        ids = [*answer.prompt_token_ids, *answer.token_ids]
        score = await oracle.score(ids, logprobs=1)
        for entry, known in zip(entries_of(t, answer), score.entries[len(answer.prompt_token_ids) :], strict=True):
            best = max((known or entry).top.values())
            first, value = next(iter(entry.top.items()))
            exact = (known or entry).top.get(first)
            good = exact is not None or value >= best - 2 * t.gap
            t.expect(good, expected=f"the most likely token first, with {best:.3f}", seen=f"{first} with {value:.3f}")
