"""Held against the oracle: what several families ask of numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anyengine_conformance.context import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyengine import Completion

    from anyengine_conformance.context import Context

__all__ = ["ALTERNATIVES", "banned", "following", "greedy_by", "next_tokens", "open_prompt"]

#: Tokens of each of the oracle's distributions; what is less likely than all of them plays no part.
ALTERNATIVES = 200

#: What becomes of a token's log-probability: by itself, the token, and the completion so far.
Adjust = "Callable[[float, int, Sequence[int]], float]"


async def following(t: Context, ids: Sequence[int], count: int = ALTERNATIVES) -> dict[int, float]:
    """The oracle's log-probabilities of the most likely tokens behind ``ids``, most likely first."""
    oracle = await t.oracle()
    score = await oracle.score([*ids, ids[-1]], logprobs=min(count, t.engine.info.vocab_size))
    last = score.entries[-1]
    if last is None:
        raise TypeError("the oracle gave no entry behind a prompt")
    ranked = sorted(last.top.items(), key=lambda item: -item[1])
    return dict(ranked[:count])


async def next_tokens(t: Context) -> list[tuple[list[int], dict[int, float]]]:
    """Some prompts, as token ids, and the oracle's distribution behind each."""

    async def find() -> list[tuple[list[int], dict[int, float]]]:
        return [(ids := await t.engine.tokenize(prompt), await following(t, ids)) for prompt in PROMPTS]

    return await t.once("numbers.next-tokens", find)


async def open_prompt(t: Context) -> tuple[list[int], dict[int, float]]:
    """The one of them whose next token is the least certain."""
    return min(await next_tokens(t), key=lambda pair: max(pair[1].values()))


async def greedy_by(
    t: Context, answer: Completion, adjust: Callable[[float, int, Sequence[int]], float], rule: str
) -> int:
    """Each token must be the most likely one, up to near-ties, once ``adjust`` was applied to the model's distribution.

    Teacher-forced: each step is judged behind the tokens that the engine itself chose.

    Args:
        t: of the check.
        answer: a greedy completion.
        adjust: from log-probability, token, and the completion so far; minus infinity for what may not be drawn.
        rule: what it does, in words.

    Returns:
        In how many steps ``adjust`` forbids the token that would be chosen without it.

    Raises:
        Violation: a token is not the best.
    """
    oracle = await t.oracle()
    start = len(answer.prompt_token_ids)
    count = min(ALTERNATIVES, t.engine.info.vocab_size)
    score = await oracle.score([*answer.prompt_token_ids, *answer.token_ids], logprobs=count)
    decisive = 0
    for step, token in enumerate(answer.token_ids):
        entry = score.entries[start + step]
        if entry is None:
            raise TypeError("the oracle gave no entry for a token")
        before = answer.token_ids[:step]
        shaped = {other: adjust(value, other, before) for other, value in entry.top.items()}
        best = max(shaped, key=shaped.__getitem__)
        plain = max(entry.top, key=entry.top.__getitem__)
        t.expect(
            shaped[token] >= shaped[best] - t.gap,
            expected=f"token {step} to be {best}, the most likely by {oracle_name(t)} {rule}, or within {t.gap:g} nats",
            seen=f"{token}, which is {shaped[best] - shaped[token]:.3f} nats less likely; tokens so far: {before}",
        )
        decisive += shaped[plain] < shaped[best] - t.gap
    return decisive


def oracle_name(t: Context) -> str:
    """What it is called in a message."""
    return "the float32 oracle" if t.engine.info.dtype != "float32" else "the oracle"


def banned(ids: Sequence[Sequence[int]]) -> Callable[[float, int, Sequence[int]], float]:
    """An ``adjust`` that forbids the last token of each sequence behind its other tokens."""
    alone = {word[-1] for word in ids if len(word) == 1}
    longer = [(list(word[:-1]), word[-1]) for word in ids if len(word) > 1]

    def adjust(value: float, token: int, before: Sequence[int]) -> float:
        ended = any(token == last and list(before[-len(head) :]) == head for head, last in longer)
        return -math.inf if token in alone or ended else value

    return adjust
