"""How far a data type's rounding moves the choice between two tokens of a model, measured on that model.

The near-tie gap in ``calibration.json`` is right for the built-in model, and at most 0.25 nats. Other models have
larger logits, and a correct engine confuses tokens of theirs that are further apart: transformers itself, in bfloat16,
loses 0.32 nats with SmolLM2-135M (``docs/parity.md``). So where a token is beyond the gap, the oracle computes the
model in the engine's data type as well, on texts of several kinds, and what that moves decides: 0.81 nats there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine_conformance.teacher_forcing import calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine import Score

    from anyengine_conformance.oracle import Oracle

__all__ = ["measured_gap", "shifts"]

#: Among so many tokens of the coarse computation the exact one's best two are looked for.
_AMONG = 20


def shifts(exact: Score, coarse: Score) -> list[float]:
    """At each position, by how much the difference between the best two tokens has changed, in nats.

    Args:
        exact: of a text, with the two most likely tokens of each position.
        coarse: of the same text in a data type, with more of them.
    """
    found: list[float] = []
    for one, other in zip(exact.entries, coarse.entries, strict=True):
        if one is None or other is None:
            continue
        best, second = sorted(one.top, key=one.top.__getitem__, reverse=True)[:2]
        # One that the data type has moved out of sight was moved by more than this, which errs on the strict side. (The
        # text's own token is there too, however unlikely.)
        lowest = sorted(other.top.values(), reverse=True)[:_AMONG][-1]
        moved = other.top.get(best, lowest) - other.top.get(second, lowest)
        found.append(abs(one.top[best] - one.top[second] - moved))
    return found


async def measured_gap(oracle: Oracle, coarse: Oracle, texts: Sequence[Sequence[int]]) -> float:
    """Nats within which either of two tokens may be the greedy one: the quantile and the margin of the calibration.

    Args:
        oracle: in float32.
        coarse: the same one in the engine's data type.
        texts: token ids, at least two each.
    """
    found: list[float] = []
    for text in texts:
        exact = await oracle.score(text, logprobs=2)
        found += shifts(exact, await coarse.score(text, logprobs=_AMONG))
    found.sort()
    constants = calibration()
    place = min(len(found) - 1, int(constants["quantile"] * len(found)))
    return round(constants["margin"] * found[place], 4)
