"""The first tokens of many completions, and what they tell by themselves where the subject has no oracle."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from anyengine import SamplingParams

from anyengine_conformance.context import PROMPTS
from anyengine_conformance.statistics import binomial_bounds, binomial_p, stage

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

__all__ = ["DRAWS", "drawn_by_temperature", "drawn_of_top_k", "first_tokens", "greedy_is_drawn_most"]

DRAWS = 128
#: Of one sample, where another sample stands for the exact distribution.
_MANY = 1024
#: How much less likely than a rejection asks for it must be that one who ignores the temperature passes for honest.
_CLEAR = 1e-3


async def first_tokens(t: Context, prompt: str | list[int], sampling: SamplingParams, draws: int = DRAWS) -> list[int]:
    """The first token of so many completions, in calls of 32."""
    found: list[int] = []
    for _ in range(draws // 32):
        answer = await t.generate(prompt, n=32, max_tokens=1, sampling=sampling)
        found += [choice.token_ids[0] for choice in answer.choices]
    return found


async def _counts(t: Context, prompt: str | list[int], sampling: SamplingParams, draws: int) -> Counter[int]:
    return Counter(await first_tokens(t, prompt, sampling, draws))


def _range(counts: Counter[int], token: int, alpha: float, temperature: float) -> tuple[float, float]:
    """Least and greatest probability of a token at a temperature, given draws at temperature 1.

    With ``a = 1 / temperature`` and ``m`` the largest of the others' probabilities, ``sum(q ** a)`` of the others is at
    most ``m ** (a - 1) * sum(q)`` where ``a > 1``, and at least that where ``a < 1``. So the odds of a token that has
    the probability ``p`` at temperature 1 are at least, or at most, ``p / (1 - p) * (p / m) ** (a - 1)``. Each of the
    three bounds that stand for ``p`` and ``m`` holds with probability ``1 - alpha``.
    """
    total = counts.total()
    low, high = binomial_bounds(counts[token], total, alpha)
    # Whichever of the others is the most likely, it came no more often than the one that came most.
    others = max((count for other, count in counts.items() if other != token), default=0)
    _, most = binomial_bounds(others, total, alpha)
    power = 1 / temperature - 1
    if power > 0:
        odds = low / (1 - low) * (low / most) ** power
        return odds / (1 + odds), 1.0
    if high >= 1 or low <= 0:
        return 0.0, 1.0
    odds = high / (1 - high) * (low / most) ** power
    return 0.0, odds / (1 + odds)


async def greedy_is_drawn_most(t: Context) -> None:
    """The greedy token is not certainly less likely than another, by draws at temperature 1."""
    level = t.alpha / (2 * len(PROMPTS))  # two bounds
    for prompt in PROMPTS:
        greedy = (await t.generate(prompt, max_tokens=1)).token_ids[0]
        counts = await _counts(t, prompt, SamplingParams(temperature=1.0), 2 * DRAWS)
        often, count = counts.most_common(1)[0]
        _, most = binomial_bounds(counts[greedy], counts.total(), level)
        least, _ = binomial_bounds(count, counts.total(), level)
        t.expect(
            most >= least,
            expected=f"the token that is drawn most at temperature 1, {often} ({count} of {counts.total()} times)",
            seen=f"{greedy} with temperature 0, which is drawn {counts[greedy]} times",
        )


async def drawn_by_temperature(t: Context, temperature: float) -> None:
    """A token comes as often as its share of draws at temperature 1 allows; whatever else the model is.

    Behind the prompt, and for the token, where a pilot sample promises most; it is not looked at again.
    """
    plain = SamplingParams(temperature=1.0)
    promising: list[tuple[float, list[int], int]] = []
    for prompt in PROMPTS:
        ids = await t.engine.tokenize(prompt)
        counts = await _counts(t, ids, plain, DRAWS)
        token, count = counts.most_common(1)[0]
        least, most = _range(counts, token, 0.1, temperature)
        share = count / counts.total()
        promising.append((max(least - share, share - most), ids, token))
    _, ids, token = max(promising, key=lambda one: one[0])
    level = stage(t.alpha) / 4  # three bounds, and the test

    async def sample(number: int) -> float:
        counts = await _counts(t, ids, plain, _MANY)
        least, most = _range(counts, token, level, temperature)
        same = counts[token]

        def p_value(hits: int) -> float:
            return min(binomial_p(hits, _MANY, most), binomial_p(_MANY - hits, _MANY, 1 - least))

        if number == 0 and p_value(same) > _CLEAR * level:
            raise t.skip(
                "the likeliest tokens of this model are too evenly likely to tell temperatures apart by draws alone; "
                "with an oracle they could be"
            )
        hits = (await _counts(t, ids, SamplingParams(temperature=temperature), _MANY))[token]
        seen.append(f"{hits} ({same} at temperature 1), where {least:.0%} to {most:.0%} were due")
        return min(1.0, 4 * p_value(hits))

    seen: list[str] = []
    rejected = await t.confirmed(sample)
    t.expect(
        rejected is None,
        expected=f"the token {token} at temperature {temperature} as often as its share at temperature 1 allows",
        seen=f"{'; '.join(seen)}; each of {_MANY} draws, p-values {rejected}",
    )


async def drawn_of_top_k(t: Context, top_k: int, temperature: float) -> None:
    """No more than ``top_k`` different tokens are drawn; and more than one, where more are certainly left."""
    level = t.alpha / (3 * len(PROMPTS))  # two bounds, and the test
    for prompt in PROMPTS:
        ids = await t.engine.tokenize(prompt)
        drawn = Counter(await first_tokens(t, ids, SamplingParams(top_k=top_k, temperature=temperature)))
        t.expect(len(drawn) <= top_k, expected=f"at most {top_k} different tokens", seen=dict(drawn.most_common()))
        counts = await _counts(t, ids, SamplingParams(temperature=temperature), _MANY)
        (_, first), (_, second) = [*counts.most_common(2), (0, 0)][:2]
        _, most = binomial_bounds(first, _MANY, level)
        least, _ = binomial_bounds(second, _MANY, level)
        # The second most likely of all is left too, and is at least that likely.
        always = (most / (most + least)) ** (DRAWS - 1)
        t.expect(
            len(drawn) > 1 or always > level,
            expected=f"different tokens, for without top_k the likeliest came {first} and {second} times of {_MANY}",
            seen=f"{DRAWS} times {next(iter(drawn))}: cut too deep",
        )
