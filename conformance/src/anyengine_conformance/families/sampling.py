"""The distribution that is drawn from, exactly: each parameter's formula, held against the oracle's probabilities.

Each check draws 1,024 completions of one to three tokens from a distribution over at most 9 cells that it computes from
the oracle's float32 scores, and tests with Pearson's chi-square within the data type's rounding (see `_exact.py`). A
rejection is confirmed on 1,024 fresh draws. Each check has 0.02 of the suite's false-alarm budget, 2 in 100,000 runs,
so 0.45% a sample. Power, by simulation (`conformance/tests/test_sampling_power.py`): over 95% against a temperature of
0.6 or 1.7 that is ignored, and against a cell of 5% that is missing, in float32; in float16 against the temperature of
0.6; in bfloat16 against gross errors only (a temperature of 0.5), because rounding alone may move a cell by a quarter.

`temperature-is-exact` looks for less: of its candidates it takes the one that tells the most of a temperature, up to 50
tokens, and tests their mean log-probability too. In float32 it finds 0.69 for 0.6, and 1.53 for 1.7, with over 95%.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams

from anyengine_conformance.check import check, family
from anyengine_conformance.families._exact import OTHER, banded_p, draws, judge, shaped, surest, with_beyond
from anyengine_conformance.families._forced import near_tie
from anyengine_conformance.families._numbers import next_tokens, open_prompt

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from anyengine_conformance.context import Context

family("sampling", "Sampling")

_DRAWS = 1024
_CELLS = 7
#: Tokens that a temperature is tested on, at most: the more, the more it moves them.
_MOST_TEMPERED = 50
_TOLERANCE = (
    "chance: Monte Carlo chi-square test within the data type's near-tie gap, 1,024 draws, confirmed on 1,024 more; "
    "share 0.02 of the budget, power over 95% (see families/sampling.py)"
)


def _first(
    t: Context, prompt: Any, sampling: SamplingParams, size: int = _DRAWS
) -> Callable[[int], Awaitable[dict[int, int]]]:
    async def sample(number: int) -> dict[int, int]:
        counts = await draws(t, prompt, sampling, size, number)
        return {outcome[0]: count for outcome, count in counts.items()}

    return sample


def _pooled(distribution: Mapping[int, float], whole: float = 1.0) -> dict[Any, float]:
    """The most likely tokens, and one cell for all the others."""
    best = dict(sorted(distribution.items(), key=lambda item: -item[1])[:_CELLS])
    return {**best, OTHER: max(1e-9, whole - math.fsum(best.values()))}


@check(
    "sampling.neutral-is-the-model",
    must="With neutral parameters tokens are drawn from the softmax of the model's logits, over the whole vocabulary.",
    advice="send every neutral value explicitly: engines have defaults of their own, and read generation_config.json",
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def neutral_is_the_model(t: Context) -> None:
    ids, top = await open_prompt(t)
    expected = _pooled({token: math.exp(value) for token, value in top.items()})
    prompt: Any = ids if t.capabilities.token_prompts else await t.engine.detokenize(ids)
    await judge(t, expected, _first(t, prompt, SamplingParams()), slack=near_tie(t), told="the model's own shares")


@check(
    "sampling.temperature-is-exact",
    must="Temperatures 0.6 and 1.7 give the softmax of the logits divided by them.",
    advice="divide the logits by the temperature before anything is cut off, and round it to nothing",
    needs=("sampling.temperature", "sampling.top_k", "token_prompts"),
    tolerance="chance: Monte Carlo tests of the shares and of the mean log-probability within the data type's near-tie "
    "gap, 2,048 draws at 0.6 and 1,024 at 1.7, confirmed on as many more; share 0.02 of the budget; in float32 power "
    "over 95% against 15% more or less of 0.6 and a tenth of 1.7 (see families/sampling.py)",
    tier="extension",
    deadline=135,
)
async def temperature_is_exact(t: Context) -> None:
    gap = near_tie(t)
    # The colder, the less a share of the temperature changes.
    for temperature, size in ((0.6, 2 * _DRAWS), (1.7, _DRAWS)):
        candidates = [
            (ids, top, SamplingParams(temperature=temperature, top_k=k))
            for ids, top in await next_tokens(t)
            for k in range(_MOST_TEMPERED, 2, -1)
        ]
        candidates.sort(key=lambda candidate: -_told_by(candidate[1], candidate[2]))
        ids, expected, sampling = surest(t, candidates, gap, "no top_k cuts at a clear edge", most=_MOST_TEMPERED)
        told = f"temperature {temperature} and top_k={sampling.top_k}"
        sample = _first(t, ids, sampling, size)
        await judge(t, expected, sample, slack=gap / temperature, told=told, tests=2, temperature=temperature)


def _told_by(logprobs: Mapping[int, float], sampling: SamplingParams) -> float:
    """How much a draw tells of its temperature: the variance of its log-probability, over that temperature."""
    shares = shaped(logprobs, sampling)
    mean = math.fsum(share * logprobs[token] for token, share in shares.items())
    return math.fsum(share * (logprobs[token] - mean) ** 2 for token, share in shares.items()) / sampling.temperature**2


@check(
    "sampling.top-k-is-exact",
    must="`top_k` keeps that many most likely tokens, with their shares in proportion.",
    advice="set all other logits to minus infinity, and take the softmax anew",
    needs=("sampling.top_k", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def top_k_is_exact(t: Context) -> None:
    gap = near_tie(t)
    tokens = await next_tokens(t)
    candidates = [(ids, top, SamplingParams(top_k=k)) for k in (5, 4, 6, 3, 7, 2) for ids, top in tokens]
    ids, expected, sampling = surest(t, candidates, gap, "no top_k cuts at a clear edge")
    await judge(t, expected, _first(t, ids, sampling), slack=gap, told=f"top_k={sampling.top_k}")


@check(
    "sampling.top-p-is-exact",
    must="`top_p` keeps the shortest list of most likely tokens that reaches it, the last one included, in proportion.",
    advice="keep the token with which the sum reaches top_p, and take the softmax of what is kept anew",
    needs=("sampling.top_p", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def top_p_is_exact(t: Context) -> None:
    gap = near_tie(t)
    tokens = await next_tokens(t)
    values = [round(0.9 - 0.02 * step, 2) for step in range(40)]
    candidates = [(ids, with_beyond(top), SamplingParams(top_p=value)) for value in values for ids, top in tokens]
    ids, expected, sampling = surest(t, candidates, gap, "no top_p cuts at a clear edge")
    await judge(t, expected, _first(t, ids, sampling), slack=gap, told=f"top_p={sampling.top_p}")


@check(
    "sampling.min-p-is-exact",
    must="`min_p` keeps the tokens that are at least that fraction as likely as the most likely one, in proportion.",
    advice="compare with min_p times the largest probability, and take the softmax of what is kept anew",
    needs=("sampling.min_p", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def min_p_is_exact(t: Context) -> None:
    gap = near_tie(t)
    tokens = await next_tokens(t)
    values = [round(0.03 * 1.15**step, 4) for step in range(22)]
    candidates = [(ids, top, SamplingParams(min_p=value)) for value in values for ids, top in tokens]
    ids, expected, sampling = surest(t, candidates, gap, "no min_p cuts at a clear edge")
    await judge(t, expected, _first(t, ids, sampling), slack=gap, told=f"min_p={sampling.min_p}")


@check(
    "sampling.truncations-in-order",
    must="Temperature, then `top_k`, then `top_p` on what is left, then `min_p`: the order decides what can be drawn.",
    advice="top_p is a share of what top_k has left, not of the vocabulary; where an engine cuts in another order, "
    "declare a conflict of the two fields",
    needs=("sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.min_p", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def truncations_in_order(t: Context) -> None:
    gap = near_tie(t)
    wrong = (("top_p", "top_k", "min_p"), ("min_p", "top_k", "top_p"), ("top_k", "min_p", "top_p"))
    candidates: list[tuple[Any, Mapping[int, float], SamplingParams]] = []
    grid = itertools.product((1.3, 0.8), (6, 5, 7, 4), (0.8, 0.7, 0.75, 0.85, 0.9, 0.6), (0.1, 0.2, 0.3, 0.4, 0.15))
    for temperature, k, p, least in grid:
        sampling = SamplingParams(temperature=temperature, top_k=k, top_p=p, min_p=least)
        for ids, top in await next_tokens(t):
            right = set(shaped(top, sampling))
            others = [set(shaped(top, sampling, order)) for order in wrong]
            if len(right) > 1 and others[0] != right and others[2] != right:
                candidates.append((ids, top, sampling))
    candidates.sort(key=lambda one: len(shaped(one[1], one[2])))
    ids, expected, sampling = surest(t, candidates, gap, "no set of values tells the orders apart")
    told = f"temperature {sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}, min_p={sampling.min_p}"
    await judge(t, expected, _first(t, ids, sampling), slack=gap / sampling.temperature, told=told)


@check(
    "sampling.allowed-tokens-in-proportion",
    must="With `allowed_token_ids` those are drawn with their shares in proportion, likely or not.",
    advice="mask the logits of all others with minus infinity before the softmax",
    needs=("sampling.allowed_token_ids", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def allowed_tokens_in_proportion(t: Context) -> None:
    ids, top = await open_prompt(t)
    sampling = SamplingParams(allowed_token_ids=[*list(top)[2:12:2], list(top)[14]])
    expected = shaped(top, sampling)
    await judge(t, expected, _first(t, ids, sampling), slack=near_tie(t), told="the allowed tokens' shares")


@check(
    "sampling.bias-is-added",
    must="`logit_bias` is added to the logits as it is, up and down.",
    advice="add the bias before the temperature; no scale, no clamp within [-100, 100]",
    needs=("sampling.logit_bias", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def bias_is_added(t: Context) -> None:
    ids, top = await open_prompt(t)
    names = list(top)
    sampling = SamplingParams(logit_bias={names[0]: -1.5, names[1]: 0.75, names[4]: 1.5})
    # What is beyond the oracle's list has no bias, and keeps its weight.
    rest = max(0.0, 1 - math.fsum(math.exp(value) for value in top.values()))
    weights = {token: math.exp(value + (sampling.logit_bias or {}).get(token, 0.0)) for token, value in top.items()}
    whole = math.fsum(weights.values()) + rest
    expected = _pooled({token: weight / whole for token, weight in weights.items()})
    await judge(t, expected, _first(t, ids, sampling), slack=near_tie(t), told="the shares with the bias")


async def sequences(
    t: Context, ids: list[int], alphabet: Sequence[int], length: int, adjust: Callable[[int, tuple[int, ...]], float]
) -> dict[tuple[int, ...], float]:
    """Each sequence over an alphabet to its probability."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for before, probability in found.items():
            top = await _scores(t, [*ids, *before], alphabet)
            weights = {token: math.exp(top[token] + adjust(token, before)) for token in alphabet}
            total = math.fsum(weights.values())
            longer |= {(*before, token): probability * weight / total for token, weight in weights.items()}
        found = longer
    return found


async def _scores(t: Context, ids: list[int], alphabet: Sequence[int]) -> dict[int, float]:
    """The oracle's log-probability of each of these tokens behind ``ids``, likely or not."""
    oracle = await t.oracle()
    return {token: (await oracle.score([*ids, token])).logprobs[-1] for token in alphabet}


@check(
    "sampling.later-tokens-follow-the-first",
    must="Pairs of tokens are drawn with the model's joint probability: the second behind the first, independently.",
    advice="compute the second token behind the one that was drawn, and draw it with a random number of its own",
    needs=("sampling.allowed_token_ids", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def later_tokens_follow_the_first(t: Context) -> None:
    ids, top = await open_prompt(t)
    alphabet = [token for token in top if token not in t.engine.model.eos_token_ids][:3]
    expected = await sequences(t, ids, alphabet, 2, lambda _token, _before: 0.0)
    sampling = SamplingParams(allowed_token_ids=alphabet)

    async def sample(number: int) -> Counter[tuple[int, ...]]:
        return await draws(t, ids, sampling, _DRAWS, number, length=2)

    await judge(t, expected, sample, slack=2 * near_tie(t), told="pairs with their joint probability")


@check(
    "sampling.penalties-follow-the-formula",
    must="`presence_penalty` once, and `frequency_penalty` for each occurrence in the completion, lower the logits.",
    advice="logit - frequency * count - presence * (count > 0), counts of the completion only, before the temperature",
    needs=("sampling.presence_penalty", "sampling.frequency_penalty", "sampling.allowed_token_ids", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def penalties_follow_the_formula(t: Context) -> None:
    ids, top = await open_prompt(t)
    alphabet = [token for token in top if token not in t.engine.model.eos_token_ids][:2]
    # The tokens stand in the prompt too, where they do not count.
    ids = [*ids, *alphabet]
    presence, frequency = 0.6, -0.9

    def adjust(token: int, before: tuple[int, ...]) -> float:
        return -presence * (token in before) - frequency * before.count(token)

    expected = await sequences(t, ids, alphabet, 3, adjust)
    sampling = SamplingParams(allowed_token_ids=alphabet, presence_penalty=presence, frequency_penalty=frequency)

    async def sample(number: int) -> Counter[tuple[int, ...]]:
        return await draws(t, ids, sampling, _DRAWS, number, length=3)

    await judge(t, expected, sample, slack=3 * near_tie(t), told="triples with presence 0.6 and frequency -0.9")


@check(
    "sampling.repetition-penalty-follows-the-formula",
    must="`repetition_penalty` divides positive and multiplies negative logits of the tokens of prompt and completion.",
    advice="positive logits are divided, negative ones multiplied, once however often the token was there",
    needs=("sampling.repetition_penalty", "sampling.temperature", "sampling.allowed_token_ids", "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
    deadline=90,
)
async def repetition_penalty_follows_the_formula(t: Context) -> None:
    ids, top = await open_prompt(t)
    names = [token for token in top if token not in t.engine.model.eos_token_ids]
    new = [token for token in names if token not in ids][:3]
    # Likely and unlikely ones, so that no constant in the logits makes the penalty nothing for all of them.
    seen = [token for token in names if token not in new][:25:8]
    if len(new) < 2:
        raise t.skip("every likely token is in the prompt already")
    alphabet, ids = sorted([*seen, *new]), [*ids, *seen, *seen[:1]]
    scores, penalty, temperature = await _scores(t, ids, alphabet), 2.0, 1.5
    sampling = SamplingParams(allowed_token_ids=alphabet, repetition_penalty=penalty, temperature=temperature)

    # The formula is of logits, the oracle gives log-probabilities: logits less a constant, which fits best of a range.
    def at(constant: float) -> dict[int, float]:
        logits = {token: value + constant for token, value in scores.items()}
        for token in set(ids) & logits.keys():
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        return shaped(logits, SamplingParams(temperature=temperature))

    counted: list[dict[int, int]] = []

    async def p_value(number: int) -> float:
        counts = await _first(t, ids, sampling)(number)
        counted.append(counts)
        if set(counts) - set(alphabet):
            return 0.0
        shares = [at(step / 10) for step in range(-100, 401)]
        best = max(shares, key=lambda one: sum(n * math.log(max(one[token], 1e-300)) for token, n in counts.items()))
        numbers = [counts.get(token, 0) for token in alphabet]
        slack = near_tie(t) * penalty / temperature + 0.02  # the constant's steps
        return banded_p(numbers, [best[token] for token in alphabet], slack, seed=t.seed + number)

    rejected = await t.confirmed(p_value)
    t.expect(
        rejected is None,
        expected=f"shares of {alphabet} with the logits of {seen}, which are in the prompt, penalised by {penalty}",
        seen=f"counts {counted}, which no constant in the logits explains; p-values {rejected}",
    )
