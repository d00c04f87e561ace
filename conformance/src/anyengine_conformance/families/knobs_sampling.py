"""Sampling fields that shape the draw: temperature, top_k, top_p, min_p, seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams
from anyengine.request import MAX_LOGPROBS

from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.families._draws import (
    DRAWS,
    drawn_by_temperature,
    drawn_of_top_k,
    first_tokens,
    greedy_is_drawn_most,
)
from anyengine_conformance.families._numbers import following, greedy_by, open_prompt
from anyengine_conformance.oracle import NEEDS_ORACLE
from anyengine_conformance.statistics import binomial_p

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine_conformance.context import Context

family("knobs", "Knobs")

_LENGTH = 24
#: Tokens of a request with a seed that is repeated; of no core check, for its fault goes by it.
SEEDED = 20


def _unchanged(value: float, token: int, before: Sequence[int]) -> float:
    del token, before
    return value


def _shares(top: Mapping[int, float], temperature: float = 1.0) -> dict[int, float]:
    """Probabilities of what is in ``top``, adding up to 1."""
    highest = max(top.values())
    weights = {token: math.exp((value - highest) / temperature) for token, value in top.items()}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


@check(
    "knobs.temperature-zero-is-greedy",
    must="With temperature 0 every token is the most likely one.",
    advice="map temperature 0 to greedy decoding; some engines take 0 for 'unset', or want do_sample=False",
    needs=("sampling.temperature",),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def temperature_zero_is_greedy(t: Context) -> None:
    if not t.has_oracle:
        await greedy_is_drawn_most(t)
        return
    for seed in (1, 2):
        answer = await t.generate(
            max_tokens=_LENGTH,
            sampling=SamplingParams(temperature=0, seed=seed if "seed" in t.capabilities.sampling else None),
        )
        await greedy_by(t, answer, _unchanged, "as it is")


def _share(top: Mapping[int, float], best: int, temperature: float, vocabulary: int) -> tuple[float, float]:
    """The least and the most probability that the ``best`` most likely tokens can have together at a temperature.

    What is beyond the list has a known mass in the model itself, but not at a temperature: above 1 it is largest if all
    those tokens are equally likely, and smallest if as few of them as possible share it, for ``x ** (1 / temperature)``
    is concave; below 1 it is the other way round.
    """
    others, edge = vocabulary - len(top), min(top.values())

    def even(mass: float) -> float:
        return others * (mass / others) ** (1 / temperature) if others else 0.0

    def packed(mass: float) -> float:
        return mass * math.exp(edge / temperature - edge) if others else 0.0

    mass = 1 - math.fsum(map(math.exp, top.values()))
    # Give or take what a sum of float32 numbers can be off; none of them is likelier than the last of the list.
    low, high = max(0.0, mass - 1e-6), min(max(0.0, mass) + 1e-6, others * math.exp(edge))
    beyond = (packed(low), even(high)) if temperature > 1 else (even(low), packed(high))
    weights = [math.exp(value / temperature) for value in top.values()]
    part, whole = math.fsum(weights[:best]), math.fsum(weights)
    return part / (whole + beyond[1]), part / (whole + beyond[0])


async def _most_likely(t: Context, temperature: float) -> None:
    """The most likely tokens come as often as that temperature makes them."""
    if not t.has_oracle:
        await drawn_by_temperature(t, temperature)
        return
    # Where the temperature certainly changes most: behind which prompt, and for how many of the most likely tokens.
    found: list[tuple[float, list[int], list[int], tuple[float, float], float]] = []
    for prompt in PROMPTS:
        ids = await t.engine.tokenize(prompt)
        top = await following(t, ids, MAX_LOGPROBS)
        for count in range(1, 16):
            after = _share(top, count, temperature, t.engine.info.vocab_size)
            best = list(top)[:count]
            before = math.fsum(math.exp(top[token]) for token in best)
            found.append((max(after[0] - before, before - after[1]), ids, best, after, before))
    _, ids, best, (lowest, highest), plain_share = max(found, key=lambda one: one[0])
    # What the data type may shift the odds by, both ways.
    slack = math.exp(4 * t.precision / temperature)
    most = highest * slack / (highest * slack + 1 - highest)
    least = lowest / (lowest + (1 - lowest) * slack)

    async def sample(number: int) -> float:
        del number
        drawn = await first_tokens(t, ids, SamplingParams(temperature=temperature))
        hits = sum(token in best for token in drawn)
        seen.append(f"{hits / DRAWS:.0%}")
        return min(1.0, 2 * min(binomial_p(hits, DRAWS, most), binomial_p(DRAWS - hits, DRAWS, 1 - least)))

    seen: list[str] = []
    rejected = await t.confirmed(sample)
    t.expect(
        rejected is None,
        expected=f"one of the {len(best)} most likely tokens in {least:.0%} to {most:.0%} of draws at temperature "
        f"{temperature} (at 1.0 it would be {plain_share:.0%}), give or take chance",
        seen=f"in {' and '.join(seen)} of {DRAWS} draws, in two samples, p-values {rejected}",
    )


@check(
    "knobs.temperature-below-one-sharpens",
    must="At temperature 0.5 the most likely tokens come as much more often as the logits divided by 0.5 say.",
    advice="divide the logits by the temperature before top_k, top_p and min_p, and draw from their softmax",
    needs=("sampling.temperature", "token_prompts"),
    tolerance="binomial test within what the data type may shift",
    tier="extension",
)
async def temperature_below_one_sharpens(t: Context) -> None:
    await _most_likely(t, 0.5)


@check(
    "knobs.temperature-above-one-flattens",
    must="At temperature 1.75 the most likely tokens come as much more seldom as the logits divided by 1.75 say.",
    advice="divide the logits by the temperature, once; it is not cut to 1",
    needs=("sampling.temperature", "token_prompts"),
    tolerance="binomial test within what the data type may shift",
    tier="extension",
)
async def temperature_above_one_flattens(t: Context) -> None:
    await _most_likely(t, 1.75)


@check(
    "knobs.top-k-one-is-greedy",
    must="With `top_k=1` every token is the most likely one, at any temperature.",
    advice="keep the top_k largest logits; with one left there is nothing to draw",
    needs=("sampling.top_k", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def top_k_one_is_greedy(t: Context) -> None:
    await _one_is_left(t, top_k=1)


async def _one_is_left(t: Context, **field: Any) -> None:
    """What leaves one token to draw from gives the greedy ones."""
    greedy = await t.generate(max_tokens=_LENGTH)
    for temperature in (1.0, 1.9):
        answer = await t.generate(max_tokens=_LENGTH, sampling=SamplingParams(temperature=temperature, **field))
        if answer.token_ids == greedy.token_ids:
            continue
        if not t.has_oracle:
            if (await t.generate(max_tokens=_LENGTH)).token_ids != greedy.token_ids:
                # That is what knobs.temperature-zero-is-greedy is about, and no fault of this field.
                told = ", ".join(f"{name}={value}" for name, value in field.items())
                raise t.skip(f"{NEEDS_ORACLE}; temperature 0 gives other tokens each time, and tells nothing of {told}")
            t.equal(answer.token_ids, greedy.token_ids, f"token_ids with {field}, as with temperature 0")
        # Two correct engines part only where both tokens are as good as best.
        await greedy_by(t, answer, _unchanged, f"as it is ({field})")


@check(
    "knobs.smallest-top-p-is-greedy",
    must="With a `top_p` that the most likely token reaches alone, every token is that one, at any temperature.",
    advice="keep tokens until their probabilities reach top_p, at least one; a field that is declared must arrive",
    needs=("sampling.top_p", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def smallest_top_p_is_greedy(t: Context) -> None:
    await _one_is_left(t, top_p=1e-4)


@check(
    "knobs.largest-min-p-is-greedy",
    must="With `min_p=1` every token is the most likely one, at any temperature.",
    advice="keep tokens that are at least min_p times as likely as the best; a field that is declared must arrive",
    needs=("sampling.min_p", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def largest_min_p_is_greedy(t: Context) -> None:
    await _one_is_left(t, min_p=1.0)


async def _within(t: Context, sampling: SamplingParams, allowed: Mapping[int, float], core: set[int]) -> None:
    """Draws stay in ``allowed``, and are not always the same token where ``core`` is certainly left to draw from."""
    ids, _ = await open_prompt(t)
    drawn = await first_tokens(t, ids, sampling)
    outside = sorted(set(drawn) - set(allowed))
    t.expect(not outside, expected=f"only tokens of {sorted(allowed)}", seen=f"also {outside}")
    # A correct engine gives one token only with probability largest ** draws; where that is not small, nothing is said.
    largest = max(_shares(allowed, sampling.temperature).values()) if len(core) > 1 else 1.0
    largest = min(1.0, largest * math.exp(2 * t.gap / sampling.temperature))
    if largest ** (DRAWS - 1) < t.alpha:
        t.expect(
            len(set(drawn)) > 1,
            expected=f"different tokens of {sorted(core)}",
            seen=f"{DRAWS} times {drawn[0]}: cut too deep",
        )


@check(
    "knobs.top-k-bounds-the-support",
    must="With `top_k=3` only the three most likely tokens are drawn, and more than one of them.",
    advice="keep the top_k largest logits, no more and no fewer",
    needs=("sampling.top_k", "sampling.temperature", "token_prompts"),
    tolerance="near-ties of the data type at the edge",
    tier="extension",
)
async def top_k_bounds_the_support(t: Context) -> None:
    if not t.has_oracle:
        await drawn_of_top_k(t, 3, 1.9)
        return
    _, top = await open_prompt(t)
    third = sorted(top.values(), reverse=True)[2]
    allowed = {token: value for token, value in top.items() if value >= third - t.gap}
    core = {token for token, value in top.items() if value >= third}
    await _within(t, SamplingParams(top_k=3, temperature=1.9), allowed, core)


@check(
    "knobs.top-p-bounds-the-mass",
    must="With `top_p` only the shortest list of most likely tokens is drawn whose probabilities reach it.",
    advice="sort by probability, and keep the beginning whose sum first reaches top_p, that last token included",
    needs=("sampling.top_p", "token_prompts"),
    tolerance="what the data type may shift the mass by",
    tier="extension",
)
async def top_p_bounds_the_mass(t: Context) -> None:
    _, top = await open_prompt(t)
    slack = math.exp(2 * t.gap)
    allowed: dict[int, float] = {}
    core: set[int] = set()
    mass = 0.0
    for token, value in top.items():
        if mass * math.exp(-2 * t.gap) < 0.5:
            allowed[token] = value
        if mass * slack < 0.5:
            core.add(token)
        mass += math.exp(value)
    await _within(t, SamplingParams(top_p=0.5), allowed, core)


@check(
    "knobs.min-p-bounds-the-ratio",
    must="With `min_p` only tokens are drawn that are at least that fraction as likely as the most likely one.",
    advice="compare with min_p times the largest probability, after temperature, top_k and top_p",
    needs=("sampling.min_p", "token_prompts"),
    tolerance="what the data type may shift the ratio by",
    tier="extension",
)
async def min_p_bounds_the_ratio(t: Context) -> None:
    _, top = await open_prompt(t)
    highest = max(top.values())
    allowed = {token: value for token, value in top.items() if value >= highest + math.log(0.5) - 2 * t.gap}
    core = {token for token, value in top.items() if value >= highest + math.log(0.5) + 2 * t.gap}
    await _within(t, SamplingParams(min_p=0.5), allowed, core)


@check(
    "knobs.seed-is-used",
    must="The same seed gives the same draw again, rounding aside; different seeds give different draws; and "
    "`Completion.seed` is the one that was asked for.",
    advice="seed each request's own generator with sampling.seed; a generator of the whole engine will not do",
    needs=("sampling.seed",),
    tier="extension",
    tolerance=f"one of 8 seeds repeats {SEEDED} tokens: where `determinism` is not asked for, rounding may turn one of "
    "them",
)
async def seed_is_used(t: Context) -> None:
    first, again = [
        [await t.generate(max_tokens=SEEDED, sampling=SamplingParams(seed=seed), **t.unending) for seed in range(8)]
        for _ in range(2)
    ]
    t.equal([answer.seed for answer in first], list(range(8)), "Completion.seed")
    if len({tuple(answer.token_ids) for answer in first}) == 1:
        # Is that likely? The probability that seven more draws are the first one.
        one = first[0]
        oracle = await t.oracle()
        score = await oracle.score([*one.prompt_token_ids, *one.token_ids])
        chance = math.exp(7 * sum(score.logprobs[len(one.prompt_token_ids) - 1 :]))
        t.expect(
            chance > t.alpha,
            expected="different completions with 8 different seeds",
            seen=f"8 times the same, which has the probability {chance:.1e}: {one.token_ids}",
        )
    t.expect(
        any(one.token_ids == other.token_ids for one, other in zip(first, again, strict=True)),
        expected=f"the same {SEEDED} tokens when a request is repeated with its seed, for one of 8 seeds at least",
        seen=f"other tokens with each of them; with the seed 0 {first[0].token_ids}, and then {again[0].token_ids}",
    )
