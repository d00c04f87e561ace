"""Teacher forcing: greedy tokens judged by an oracle that scores them behind exactly those tokens.

The oracle's best token behind the tokens before it is the one that it would have chosen itself there. So one scoring
says both where an answer first parts from the oracle's own greedy answer, and whether each later token is right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from anyengine import FinishReason

    from anyengine_conformance.oracle import Oracle

__all__ = ["MEAN_ERROR", "Step", "calibration", "ending", "near_tie_gap", "steps_of"]

#: Nats that log-probabilities may be off on average, for each data type.
MEAN_ERROR = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}


@cache
def calibration() -> dict[str, Any]:
    """What `conformance/tools/calibrate_parity.py` measured."""
    return json.loads(files("anyengine_conformance").joinpath("calibration.json").read_text(encoding="utf-8"))


def near_tie_gap(dtype: str | None) -> float:
    """Nats within which either of two tokens may be the greedy one in a data type, as calibrated.

    The data type's rounding changes the difference between two tokens; the 99.9% quantile of that change, measured,
    times a margin, at most 0.25. An engine errs only where a change beyond that meets a difference beyond that.

    Args:
        dtype: of the engine; None, or one that was not measured, is given the widest gap.
    """
    gaps: dict[str, float] = calibration()["gap"]
    return gaps.get(dtype or "", max(gaps.values()))


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer, and what the oracle says of it.

    Attributes:
        token: that was chosen.
        best: the oracle's best behind the tokens before it.
        behind: nats by which the chosen one is less likely than that; 0 where it is the best.
        logprob: of the chosen token by the oracle.
    """

    token: int
    best: int
    behind: float
    logprob: float


async def steps_of(
    oracle: Oracle, prompt: Sequence[int], tokens: Sequence[int], *, forbidden: Collection[int] = ()
) -> list[Step]:
    """Each token of an answer as the oracle sees it.

    Args:
        oracle: scores in float32.
        prompt: token ids, at least one.
        tokens: of the answer.
        forbidden: tokens that could not be chosen (held back by min_tokens, say).

    Raises:
        TypeError: the oracle gave no score for a token.
    """
    score = await oracle.score([*prompt, *tokens], logprobs=1 + len(forbidden))
    steps: list[Step] = []
    for token, entry in zip(tokens, score.entries[len(prompt) :], strict=True):
        if entry is None:
            raise TypeError("the oracle gave no entry for a token")
        allowed = {other: value for other, value in entry.top.items() if other not in forbidden or other == token}
        best = max(allowed, key=allowed.__getitem__)
        steps.append(Step(token, best, allowed[best] - entry.logprob, entry.logprob))
    return steps


def ending(tokens: Sequence[int], max_tokens: int, stops: Collection[int]) -> tuple[FinishReason, int]:
    """How an answer must end by its tokens, and its length: at its first end-of-sequence token, else at max_tokens."""
    first = next((place for place, token in enumerate(tokens) if token in stops), None)
    return ("stop", first + 1) if first is not None else ("length", max_tokens)
