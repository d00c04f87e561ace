"""The first tokens of many completions, and what they tell by themselves where the subject has no oracle.

Such judgements are weaker than an oracle's: they find a field that is ignored, or much overdone, and not one that is a
little off; and where they could not find that either, the check is not run. Which token is looked at comes from a pilot
sample that is not looked at again; bounds of probabilities are those of Clopper and Pearson.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from anyengine import SamplingParams

from anyengine_conformance.context import PROMPTS
from anyengine_conformance.oracle import NEEDS_ORACLE
from anyengine_conformance.statistics import binomial_bounds, binomial_p, stage

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

__all__ = ["DRAWS", "Counts", "drawn_by_temperature", "drawn_of_top_k", "first_tokens", "greedy_is_drawn_most"]

DRAWS = 128
#: Of a sample that stands for the exact distribution, and of one that is held against it.
_MANY = 1024
#: Of each call.
_AT_ONCE = 32
#: How much less likely than a rejection asks for it must be that one who ignores the temperature passes for honest.
_CLEAR = 1e-2
#: Bounds and tests that a sample's verdict on a temperature rests on, at most.
_PARTS = 6
#: Greedy answers behind each prompt.
_GREEDY = 8


async def first_tokens(t: Context, prompt: str | list[int], sampling: SamplingParams, draws: int = DRAWS) -> list[int]:
    """The first token of so many completions, in calls of 32."""
    found: list[int] = []
    for _ in range(draws // _AT_ONCE):
        answer = await t.generate(prompt, n=_AT_ONCE, max_tokens=1, sampling=sampling)
        found += [choice.token_ids[0] for choice in answer.choices]
    return found


async def _counts(t: Context, prompt: str, temperature: float, draws: int) -> Counter[int]:
    """Tokens that are drawn, the same in every run where the engine has seeds."""
    found = Counter[int]()
    for _ in range(draws // _AT_ONCE):
        seed = t.rng.getrandbits(31) if "seed" in t.capabilities.sampling else None
        found.update(await first_tokens(t, prompt, SamplingParams(temperature=temperature, seed=seed), _AT_ONCE))
    return found


class Counts(NamedTuple):
    """Of draws at temperature 1: of a token, of another one, of whichever other came most, and of all."""

    first: int
    second: int
    other: int
    total: int

    def range(self, alpha: float, temperature: float, vocabulary: int) -> tuple[float, float]:
        """Least and greatest probability of the first token at another temperature.

        With ``a = 1 / temperature``, ``p`` and ``s`` the probabilities of the two tokens at temperature 1, and ``m``
        the largest of all others', its odds are ``p ** a / sum(q ** a)``. Of the others, whose probabilities ``q`` have
        the sum ``1 - p``, that sum is

        - for ``a > 1`` at most ``m ** (a - 1) * (1 - p)`` and at least ``s ** a``;
        - for ``a < 1`` at least ``m ** (a - 1) * (1 - p)``, and at most what ``vocabulary - 1`` equal ones would give.

        Args:
            alpha: the probability that a bound is wrong, of each of four that stand for ``p``, ``s`` and ``m``.
            temperature: not 1.
            vocabulary: its size.
        """
        low, high = binomial_bounds(self.first, self.total, alpha)
        # Whichever of the others is the most likely came no more often than the one that came most.
        _, most = binomial_bounds(self.other, self.total, alpha)
        power = 1 / temperature
        if power > 1:
            second, _ = binomial_bounds(self.second, self.total, alpha)
            least = low / (1 - low) * (low / most) ** (power - 1)
            greatest = (high / second) ** power if second else math.inf
        else:
            least = (low / (1 - low)) ** power / max(1, vocabulary - 1) ** (1 - power)
            greatest = high / (1 - high) * (high / most) ** (power - 1) if high < 1 else math.inf
        return least / (1 + least), 1.0 if math.isinf(greatest) else greatest / (1 + greatest)


def _of(counts: Counter[int], first: int, second: int) -> Counts:
    other = max((count for token, count in counts.items() if token != first), default=0)
    return Counts(counts[first], counts[second] if second != first else 0, other, counts.total())


def _two(counts: Counter[int]) -> tuple[int, int]:
    """The two that came most; twice the same if there is only one."""
    ranked = [token for token, _ in counts.most_common(2)]
    return ranked[0], ranked[-1]


async def drawn_by_temperature(t: Context, temperature: float) -> None:
    """A token comes as often as its share of draws at temperature 1 allows, whatever else the model is."""
    vocabulary = t.engine.info.vocab_size
    promising: list[tuple[float, str, int, int]] = []
    for prompt in PROMPTS:
        pilot = await _counts(t, prompt, 1.0, DRAWS)
        first, second = _two(pilot)
        least, most = _of(pilot, first, second).range(0.1, temperature, vocabulary)
        share = pilot[first] / pilot.total()
        promising.append((max(least - share, share - most), prompt, first, second))
    _, prompt, first, second = max(promising, key=lambda one: one[0])
    level = stage(t.alpha) / _PARTS

    async def sample(number: int) -> float:
        plain = _of(await _counts(t, prompt, 1.0, _MANY), first, second)
        least, most = plain.range(level, temperature, vocabulary)

        def p_value(hits: int) -> float:
            return min(binomial_p(hits, _MANY, most), binomial_p(_MANY - hits, _MANY, 1 - least))

        if number == 0 and p_value(plain.first) > _CLEAR * level:
            raise t.skip(
                f"{NEEDS_ORACLE}; behind the suite's prompts draws alone do not tell whether this model's temperature "
                "is honoured"
            )
        hits = (await _counts(t, prompt, temperature, _MANY))[first]
        seen.append(
            f"{hits / _MANY:.1%} ({plain.first / _MANY:.1%} at temperature 1), where {least:.1%} to {most:.1%} were due"
        )
        return min(1.0, _PARTS * p_value(hits))

    seen: list[str] = []
    rejected = await t.confirmed(sample)
    t.expect(
        rejected is None,
        expected=f"the token {first} at temperature {temperature} as often as its share at temperature 1 allows",
        seen=f"{'; '.join(seen)}; each of {_MANY} draws, p-values {rejected}",
    )


async def greedy_is_drawn_most(t: Context) -> None:
    """No greedy token is certainly less likely than another one, by draws at temperature 1."""
    level = t.alpha / (len(PROMPTS) * (1 + _GREEDY))
    told = False
    for prompt in PROMPTS:
        often, _ = _two(await _counts(t, prompt, 1.0, DRAWS))
        # With a seed each, where there are some: one that draws in spite of the temperature draws something else then.
        seeds: list[int | None] = [*range(_GREEDY)] if "seed" in t.capabilities.sampling else [None] * _GREEDY
        greedy = [SamplingParams(temperature=0, seed=seed) for seed in seeds]
        chosen = {(await t.generate(prompt, max_tokens=1, sampling=one)).token_ids[0] for one in greedy}
        counts = await _counts(t, prompt, 1.0, 2 * DRAWS)
        least, _ = binomial_bounds(counts[often], counts.total(), level)
        for token in sorted(chosen):
            _, most = binomial_bounds(counts[token], counts.total(), level)
            t.expect(
                most >= least * math.exp(-t.gap),
                expected=f"the token drawn most at temperature 1: {often}, {counts[often]} of {2 * DRAWS} times",
                seen=f"{token} with temperature 0, which is drawn {counts[token]} times",
            )
        told = told or len(counts) > 1
    if not told:
        raise t.skip(f"{NEEDS_ORACLE}; behind the suite's prompts this model draws one token only, at any temperature")


async def drawn_of_top_k(t: Context, top_k: int, temperature: float) -> None:
    """No call draws more than ``top_k`` different tokens; and more than one, where more are certainly left.

    Where the last of them is nearly as likely as the next, rounding may choose now one and now the other: that may be
    so behind one of the prompts.
    """
    level = t.alpha / (4 * len(PROMPTS))  # three bounds, and the test
    too_many: list[dict[int, int]] = []
    told = False
    for prompt in PROMPTS:
        first, second = _two(pilot := await _counts(t, prompt, temperature, DRAWS))
        told = told or len(pilot) > top_k
        sampling = SamplingParams(top_k=top_k, temperature=temperature)
        calls = [Counter(await first_tokens(t, prompt, sampling, _AT_ONCE)) for _ in range(DRAWS // _AT_ONCE)]
        drawn = sum(calls, Counter[int]())
        if any(len(call) > top_k for call in calls):
            too_many.append(dict(drawn.most_common()))
        plain = await _counts(t, prompt, temperature, 2 * DRAWS)
        _, most = binomial_bounds(max(plain.values()), plain.total(), level)
        least = min(binomial_bounds(plain[token], plain.total(), level)[0] for token in (first, second))
        # The second most likely of all is left too, and is at least that likely, if these two are two.
        always = (most / (most + least)) ** (DRAWS - 1) if first != second else 1.0
        t.expect(
            len(drawn) > 1 or always > level,
            expected=f"different tokens; without top_k, {len(plain)} different ones in {plain.total()} draws",
            seen=f"{DRAWS} times {next(iter(drawn))}: cut too deep",
        )
    t.expect(len(too_many) <= 1, expected=f"at most {top_k} different tokens", seen=too_many)
    if not told:
        raise t.skip(f"{NEEDS_ORACLE}; behind the suite's prompts this model draws {top_k} different tokens at most")
