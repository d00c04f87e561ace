"""Seeds: what is drawn follows the model, varies without a seed, and says which seed it was."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from anyengine import SamplingParams

from anyengine_conformance.check import OWN, check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.statistics import multinomial_p

if TYPE_CHECKING:
    from anyengine import Engine

    from anyengine_conformance.context import Context

family("seeds", "Seeds")

_DRAWS = 600
_KEPT = 4
_BATCH = 100


async def _distribution(t: Context) -> dict[int, float]:
    """The most likely first tokens of the prompt, their probabilities adding up to 1, by the engine's own scores."""
    answer = await t.generate(max_tokens=1, logprobs=_KEPT, sampling=SamplingParams())
    top = answer.logprobs[0].top if answer.logprobs else {}
    t.expect(len(top) >= _KEPT, expected=f"{_KEPT} alternatives for logprobs={_KEPT}", seen=top)
    best = sorted(top, key=lambda token: -top[token])[:_KEPT]
    total = math.fsum(math.exp(top[token]) for token in best)
    return {token: math.exp(top[token]) / total for token in best}


@check(
    "seeds.draws-follow-the-distribution",
    must="First tokens drawn with different seeds have the frequencies of the model's own distribution.",
    advice="draw from the softmax of the logits after step 6 to 9 of the draw, with the request's own generator",
    needs=("sampling.seed", "sampling.allowed_token_ids", "logprobs"),
    tier="extension",
    deadline=60,
    tolerance="chance: Monte Carlo chi-square test over 4 tokens, 600 draws, confirmed on 600 more",
)
async def draws_follow_the_distribution(t: Context) -> None:
    expected = await t.once("seeds.distribution", lambda: _distribution(t))
    ids = list(expected)

    async def sample(number: int) -> float:
        counts: Counter[int] = Counter()
        for first in range(0, _DRAWS, _BATCH):
            # Seeds far apart, of their own in each sample.
            seed = (t.seed + (number * _DRAWS + first) * 7919) % 2**62
            sampling = SamplingParams(seed=seed, allowed_token_ids=ids)
            answer = await t.generate(max_tokens=1, n=_BATCH, sampling=sampling)
            counts.update(choice.token_ids[0] for choice in answer.choices)
        return multinomial_p([counts[token] for token in ids], list(expected.values()), seed=t.seed + number)

    rejected = await t.confirmed(sample)
    t.expect(rejected is None, expected=f"frequencies like {expected}", seen=f"p-values {rejected} in two samples")


@check(
    "seeds.choices-are-independent-draws",
    must="The `n` completions of one request are independent draws: pairs of them occur as often as chance says.",
    advice="give every one of the n sequences a random stream of its own; the SDK sends them with seed, seed + 1, …",
    needs=("sampling.allowed_token_ids", "logprobs"),
    tier="extension",
    deadline=60,
    tolerance="chance: Monte Carlo chi-square test over 4 pairs of 2 tokens, 300 pairs, confirmed on 300 more",
)
async def choices_are_independent_draws(t: Context) -> None:
    expected = await t.once("seeds.distribution", lambda: _distribution(t))
    ids = list(expected)[:2]
    total = sum(expected[token] for token in ids)
    single = [expected[token] / total for token in ids]
    pairs = [(a, b) for a in range(2) for b in range(2)]

    async def sample(number: int) -> float:
        counts: Counter[tuple[int, int]] = Counter()
        for _ in range(6):
            answer = await t.generate(max_tokens=1, n=100, sampling=SamplingParams(allowed_token_ids=ids))
            drawn = [ids.index(choice.token_ids[0]) for choice in answer.choices]
            counts.update(zip(drawn[::2], drawn[1::2], strict=True))
        chances = [single[a] * single[b] for a, b in pairs]
        return multinomial_p([counts[pair] for pair in pairs], chances, seed=t.seed + number)

    rejected = await t.confirmed(sample)
    t.expect(
        rejected is None, expected="pairs as frequent as the product of their chances", seen=f"p-values {rejected}"
    )


@check(
    "seeds.unseeded-varies",
    must="Without a seed, calls vary.",
    advice="declare unseeded='fixed' if the engine uses one seed for all, and the SDK draws one for each request",
    tolerance="chance: equal texts have probability below the check's share by far",
)
async def unseeded_varies(t: Context) -> None:
    answers = [await t.generate(max_tokens=24, sampling=SamplingParams(), **t.unending) for _ in range(6)]
    seen = {tuple(answer.token_ids) for answer in answers}
    t.expect(len(seen) > 1, expected="different tokens in 6 calls without a seed", seen=answers[0].token_ids)


@check(
    "seeds.unseeded-choices-vary",
    must="Without a seed, the `n` completions of one request vary.",
    advice="start a random stream for every sequence; with one for the whole request all n are equal",
    tolerance="chance: as seeds.unseeded-varies",
)
async def unseeded_choices_vary(t: Context) -> None:
    answer = await t.generate(max_tokens=24, n=6, sampling=SamplingParams(), **t.unending)
    seen = {tuple(choice.token_ids) for choice in answer.choices}
    t.expect(len(seen) > 1, expected="different tokens in 6 completions", seen=answer.token_ids)


@check(
    "seeds.seed-is-reported",
    must="A completion says which seed it was drawn with, and the n of a request use seed, seed + 1 and so on.",
    advice="take the seed of each request as it comes; the SDK numbers them",
    needs=("sampling.seed",),
)
async def seed_is_reported(t: Context) -> None:
    answer = await t.generate(max_tokens=2, n=3, sampling=SamplingParams(seed=41))
    t.equal([choice.seed for choice in answer.choices], [41, 42, 43], "seeds of the completions")
    answer = await t.generate(max_tokens=2, n=2, sampling=SamplingParams(seed=2**63 - 1))
    t.equal([choice.seed for choice in answer.choices], [2**63 - 1, 0], "seeds, which go round at 2**63")


@check(
    "seeds.seeds-differ",
    must="Different seeds give different draws.",
    advice="use the whole seed; some engines cut it to 32 bits, or read it once for the engine",
    needs=("sampling.seed",),
    tolerance="chance: equal texts have probability below the check's share by far",
)
async def seeds_differ(t: Context) -> None:
    for seeds in ((1, 2, 3, 4, 5, 6), tuple(7 + step * 2**32 for step in range(6))):
        seen: set[tuple[int, ...]] = set()
        for seed in seeds:
            answer = await t.generate(max_tokens=24, sampling=SamplingParams(seed=seed), **t.unending)
            seen.add(tuple(answer.token_ids))
        t.expect(len(seen) > 1, expected=f"different tokens with the seeds {seeds}", seen=seen)


@check(
    "seeds.greedy-needs-none",
    must="A greedy request has no seed, and none is reported for it.",
    advice="report in a completion only the seed that was used; greedy requests draw nothing",
    needs=("sampling.temperature",),
)
async def greedy_needs_none(t: Context) -> None:
    answer = await t.generate(max_tokens=2, sampling=SamplingParams(temperature=0))
    t.equal(answer.seed, None, "seed of a greedy completion")


async def _tokens(engine: Engine) -> list[list[int]]:
    """The same requests in the same order."""
    found: list[list[int]] = []
    for number, prompt in enumerate(PROMPTS):
        answer = await engine.generate(prompt, max_tokens=16, sampling=SamplingParams(seed=100 + number))
        found.append(answer.token_ids)
    return found


@check(
    "seeds.run-repeats",
    must="With determinism='run' the same requests in the same order give the same tokens in another load.",
    advice="do not declare determinism.run unless kernels, scheduling and random streams repeat",
    needs=("determinism.run", "sampling.seed"),
    tier="extension",
    variant=OWN,
    deadline=300,
)
async def run_repeats(t: Context) -> None:
    seen: list[list[list[int]]] = []
    for _ in range(2):
        async with t.load(determinism="run") as engine:
            t.asked(f"{len(PROMPTS)} requests with seeds, 16 tokens each")
            seen.append(await _tokens(engine))
    t.equal(seen[1], seen[0], "tokens of the second load")
