"""Teacher-forced judgement: an engine's greedy tokens, scored by the oracle behind exactly those tokens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyengine_conformance.families import _kinds as kinds
from anyengine_conformance.teacher_forcing import ending, near_tie_gap, steps_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from anyengine import Completion

    from anyengine_conformance.context import Context
    from anyengine_conformance.oracle import Oracle

__all__ = ["Judged", "answer_of", "forced", "forced_all", "near_tie"]


def near_tie(t: Context) -> float:
    """:func:`near_tie_gap` of the engine's data type."""
    return near_tie_gap(t.engine.info.dtype)


@dataclass(slots=True)
class Judged:
    """What was found while judging.

    Attributes:
        steps: tokens that were judged.
        ties: of those, the ones that are not the oracle's best but within the gap.
        errors: absolute errors of the log-probabilities that the engine gave, in nats.
    """

    steps: int = 0
    ties: int = 0
    errors: list[float] = field(default_factory=list[float])

    def add(self, other: Judged) -> None:
        """Put two together."""
        self.steps += other.steps
        self.ties += other.ties
        self.errors += other.errors


async def answer_of(t: Context, prompt: Any, **options: Any) -> Completion:
    """One call of many at once, of which the check itself says in one line what it asked."""
    engine: Any = t.engine
    return await engine.generate(prompt, **options)


async def forced(
    t: Context,
    answer: Completion,
    *,
    what: str = "",
    max_tokens: int | None = None,
    ends: Collection[int] | None = None,
    forbidden: Collection[int] = (),
    oracle: Oracle | None = None,
) -> Judged:
    """Each token of a greedy completion must be the oracle's best, or a near-tie, and it must end where those say.

    Args:
        t: of the check.
        answer: the completion.
        what: which one, for the message.
        max_tokens: that were asked for; None judges no ending.
        ends: tokens that end it; None takes the model's.
        forbidden: tokens that could not be chosen (held back by min_tokens, say).
        oracle: of another checkpoint than the subject's.

    Raises:
        Violation: a token is not the best, or the completion ends elsewhere.
    """
    oracle, gap = oracle or await t.oracle(), near_tie(t)
    stops = t.engine.model.eos_token_ids if ends is None else ends
    prompt, tokens = answer.prompt_token_ids, answer.token_ids
    t.expect(bool(tokens), expected=f"at least one token {what}", seen="an empty completion")
    judged = Judged(steps=len(tokens))
    steps = await steps_of(oracle, prompt, tokens, forbidden=forbidden)
    where = "as calibrated on the built-in model"
    if any(step.behind > gap for step in steps):
        measured = await _gap_of_the_model(t, oracle)
        if measured is not None:
            gap, where = max(measured, gap), f"as {oracle.name} measures it on this model"
    for number, step in enumerate(steps):
        judged.ties += step.token != step.best and step.behind <= gap
        if step.behind > gap:
            told = await t.engine.detokenize([*tokens[:number]])
            raise t.fail(
                expected=f"token {number} {what} to be {step.best}, the best by {oracle.name} in float32 behind the "
                f"tokens before it, or within {gap:g} nats of it (a near-tie in {t.dtype}, {where})",
                seen=f"{step.token}, which is {step.behind:.3f} nats less likely; before it: {told!r}",
            )
        if answer.logprobs is not None:
            judged.errors.append(abs(answer.logprobs[number].logprob - step.logprob))
    if max_tokens is not None:
        _ending(t, answer, max_tokens, stops, what)
    return judged


async def _gap_of_the_model(t: Context, oracle: Oracle) -> float | None:
    """What rounding moves in this very model; None where the oracle cannot tell."""

    async def tokenized() -> list[list[int]]:
        engine: Any = t.engine
        return [await engine.tokenize(text) for text in kinds.CALIBRATION]

    ids = await t.once("the calibration's texts", tokenized)
    return await oracle.gap(t.engine.info.dtype, [text for text in ids if len(text) > 1])


def _ending(t: Context, answer: Completion, max_tokens: int, stops: Collection[int], what: str) -> None:
    """The tokens say where it ends: at the first end-of-sequence token, else at the length."""
    tokens = answer.token_ids
    t.equal(
        (answer.finish_reason, len(tokens)),
        ending(tokens, max_tokens, stops),
        f"(finish_reason, number of tokens) {what}, by the end-of-sequence tokens {sorted(stops)[:8]} among its tokens",
        advice="end a sequence at the first of request.eos_token_ids, or at max_tokens, and nowhere else",
    )


async def forced_all(
    t: Context, answers: Sequence[Completion], names: Sequence[str] | None = None, **options: Any
) -> Judged:
    """:func:`forced` for several, at once."""
    told = names or [f"of prompt {number}" for number in range(len(answers))]
    total = Judged()
    found = await asyncio.gather(
        *(forced(t, answer, what=name, **options) for answer, name in zip(answers, told, strict=True)),
        return_exceptions=True,
    )
    for one in found:
        if isinstance(one, BaseException):
            raise one
        total.add(one)
    return total
