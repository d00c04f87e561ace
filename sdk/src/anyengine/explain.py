"""Why two engines answer differently: what they were given, what they stop at, and where their greedy texts part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from anyengine.errors import InvalidRequest, UnsupportedCapability
from anyengine.request import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.engine import Engine
    from anyengine.outputs import Completion
    from anyengine.request import Message, Prompt

__all__ = ["Explanation", "Finding", "Parting", "explain"]

#: Nats within which two correct engines may choose differently: float32 keeps seven digits, and with 16-bit weights or
#: activations the order of sums alone moves a logit by this much.
NEAR_TIE = {"float32": 1e-3}
NEAR_TIE_16_BIT = 0.25

Verdict = Literal["same", "model", "prompt", "stopping", "near-tie", "defect", "unknown"]


class Finding(Struct, frozen=True):
    """One thing that was compared.

    Attributes:
        topic: what.
        same: whether the engines agree in it; None where it cannot be told.
        detail: what each has.
    """

    topic: str
    same: bool | None
    detail: str


class Parting(Struct, frozen=True):
    """The first token at which the greedy texts part.

    Attributes:
        position: how many generated tokens are the same before it.
        tokens: what each engine chose; None where it had ended.
        texts: the same as text.
        gaps: by how many nats each engine prefers its own token to the other's; None where it cannot tell.
        near_tie: the gap that is allowed between these two.
    """

    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]
    gaps: tuple[float | None, float | None]
    near_tie: float


class Explanation(Struct, frozen=True):
    """What was found.

    Attributes:
        engines: their names.
        findings: each thing that was compared, in the order in which a difference would explain the later ones.
        parting: where the texts part; None if they do not.
        texts: what each answered.
        verdict: ``same``; ``model``: they have different checkpoints; ``prompt``: they were given different tokens;
            ``stopping``: one ended where the other went on; ``near-tie``: both are right; ``defect``: one of them
            computes something else; ``unknown``: neither can score.
        summary: that in a sentence.
    """

    engines: tuple[str, str]
    findings: list[Finding]
    parting: Parting | None
    texts: tuple[str, str]
    verdict: Verdict
    summary: str


async def explain(first: Engine, second: Engine, prompt: Prompt, *, max_tokens: int = 128) -> Explanation:
    """Compare two loaded engines on one prompt, greedily.

    Args:
        first: an engine.
        second: the other one.
        prompt: text, token ids, or messages.
        max_tokens: how far the texts are followed.
    """
    engines = (first, second)
    findings = await _findings(first, second, prompt)
    ids = [await engine.tokenize(prompt) for engine in engines]
    answers = [
        await engine.generate(prompt, sampling=SamplingParams(temperature=0), max_tokens=max_tokens)
        for engine in engines
    ]
    findings.append(_compared("finish", [f"{a.finish_reason} {a.stop_reason or ''}".strip() for a in answers]))
    parting = None
    if answers[0].token_ids != answers[1].token_ids:
        parting = await _parting(engines, ids, answers)
    verdict, summary = _verdict(first, second, findings, ids, answers, parting)
    return Explanation(
        (first.name, second.name), findings, parting, (answers[0].text, answers[1].text), verdict, summary
    )


async def _findings(first: Engine, second: Engine, prompt: Prompt) -> list[Finding]:
    engines = (first, second)
    findings = [_compared("model", [f"{e.model.path}" for e in engines])]
    if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
        messages: Sequence[Message] = prompt  # pyright: ignore[reportAssignmentType] the first member tells the rest
        findings.append(_compared("chat template", [repr(await e.apply_chat_template(messages)) for e in engines]))
    findings.append(_compared("prompt tokens", [str(await e.tokenize(prompt)) for e in engines]))
    findings.append(_compared("end-of-sequence tokens", [str(sorted(e.model.eos_token_ids)) for e in engines]))
    findings.append(Finding("sampling", same=True, detail="greedy; a model's own defaults are applied by none"))
    findings.append(_compared("dtype", [e.info.dtype or "not said" for e in engines]))
    findings.append(_compared("context", [str(e.info.max_model_len) for e in engines]))
    return findings


def _compared(topic: str, values: Sequence[str]) -> Finding:
    one, other = values
    return Finding(topic, one == other, one if one == other else f"{one} | {other}")


async def _parting(
    engines: tuple[Engine, Engine], ids: Sequence[Sequence[int]], answers: Sequence[Completion]
) -> Parting:
    one, other = (answer.token_ids for answer in answers)
    position = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if position is None:
        position = min(len(one), len(other))
    tokens = tuple(answer.token_ids[position] if position < len(answer.token_ids) else None for answer in answers)
    gaps: list[float | None] = [None, None]
    if tokens[0] is not None and tokens[1] is not None:
        for number, engine in enumerate(engines):
            before = [*ids[number], *answers[number].token_ids[:position]]
            gaps[number] = await _gap(engine, before, tokens[number] or 0, tokens[1 - number] or 0)
    texts = [await e.detokenize([t]) if t is not None else "" for e, t in zip(engines, tokens, strict=True)]
    dtypes = {engine.info.dtype for engine in engines}
    near_tie = NEAR_TIE["float32"] if dtypes == {"float32"} else NEAR_TIE_16_BIT
    return Parting(position, (tokens[0], tokens[1]), (texts[0], texts[1]), (gaps[0], gaps[1]), near_tie)


async def _gap(engine: Engine, before: list[int], own: int, others: int) -> float | None:
    """By how many nats it prefers its own token to the other engine's; None if it cannot score."""
    try:
        scores = [(await engine.score([*before, token])).entries[-1] for token in (own, others)]
    except (UnsupportedCapability, InvalidRequest):
        return None
    if scores[0] is None or scores[1] is None:
        return None
    return scores[0].logprob - scores[1].logprob


def _verdict(
    first: Engine,
    second: Engine,
    findings: Sequence[Finding],
    ids: Sequence[Sequence[int]],
    answers: Sequence[Completion],
    parting: Parting | None,
) -> tuple[Verdict, str]:
    differs = {finding.topic for finding in findings if finding.same is False}
    if ids[0] != ids[1]:
        cause = "their chat templates differ" if "chat template" in differs else "their tokenizers do"
        return "prompt", f"The engines were given different tokens: {cause}."
    if parting is None:
        return "same", f"Both generated the same {len(answers[0].token_ids)} tokens."
    names = (first.name, second.name) if first.name != second.name else ("the first", "the second")
    if None in parting.tokens:
        ended = parting.tokens.index(None)
        reason = f"{answers[ended].finish_reason}, {answers[ended].stop_reason!r}"
        same = f"After the same {parting.position} tokens"
        return "stopping", f"{same} {names[ended]} ended ({reason}) and {names[1 - ended]} went on."
    chosen = " and ".join(f"{name} chose {text!r}" for name, text in zip(names, parting.texts, strict=True))
    shown = f"At token {parting.position} {chosen}"
    if "model" in differs:
        return "model", f"{shown}; they have different checkpoints."
    return _judged(parting, names, shown)


def _judged(parting: Parting, names: tuple[str, str], shown: str) -> tuple[Verdict, str]:
    """A near-tie or a defect, by the scores."""
    gaps = {name: gap for name, gap in zip(names, parting.gaps, strict=True) if gap is not None}
    if not gaps:
        return "unknown", f"{shown}; neither can score, so it cannot be told whether that is a near-tie."
    told = ", ".join(f"{name} prefers its own by {gap:.4f} nat" for name, gap in gaps.items())
    wrong = [name for name, gap in gaps.items() if gap < -parting.near_tie]
    if wrong:
        return "defect", f"{shown}; {told}: {' and '.join(wrong)} did not choose what it scores highest."
    if min(gaps.values()) <= parting.near_tie:
        return "near-tie", f"{shown}; {told}: a near-tie (within {parting.near_tie} nat), both are right."
    return "defect", f"{shown}; {told}: more than a near-tie ({parting.near_tie} nat), they compute different things."
