"""What quantising costs: how far a quantised model's distributions are from those of the float model, on fixed texts.

Teacher-forced: both score the same tokens, which the float model's tokenizer makes of texts that no calibration has
seen. Three measures, the same as in the literature on quantisation (for one, https://arxiv.org/abs/2405.03146):
the ratio of perplexities, the mean Kullback-Leibler divergence of the next token's distribution, and how often the most
likely token is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from anyengine.quantization.calibration import builtin_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine.engine import Engine
    from anyengine.outputs import TokenLogprobs

__all__ = ["TOP", "Drift", "compare", "held_out_texts", "scores_of"]

#: Most likely tokens whose probabilities are compared one by one; all others count as one more.
TOP = 100
#: Tokens of a text that are scored.
_TOKENS = 192


class Drift(Struct, frozen=True, kw_only=True):
    """How far a quantised model is from the float one.

    Attributes:
        perplexity_ratio: of the quantised model, by that of the float one.
        mean_kl: nats; of the most likely tokens and of all others as one: a lower bound.
        top1_agreement: share of positions with the same most likely token.
        tokens: positions that were compared.
    """

    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"perplexity ratio {self.perplexity_ratio:.4f}, mean KL {self.mean_kl:.4f} nats, the same best token at "
            f"{self.top1_agreement:.1%} of {self.tokens} positions"
        )


def held_out_texts() -> tuple[str, ...]:
    """The built-in texts that drift is measured on; none of them is in the built-in calibration set."""
    return builtin_texts("held-out")


async def scores_of(
    engine: Engine, texts: Sequence[str], *, top: int = TOP, tokens: int = _TOKENS
) -> list[list[TokenLogprobs]]:
    """What an engine gives for texts: an entry for every token of each but its first.

    Args:
        engine: that has ``score``.
        texts: at least two tokens each.
        top: alternatives a position, as far as the engine gives them.
        tokens: of a text that are scored, at most.

    Raises:
        UnsupportedCapability: the engine cannot score.
    """
    top = min(top, engine.capabilities.max_logprobs)
    scored: list[list[TokenLogprobs]] = []
    for text in texts:
        ids = (await engine.tokenize(text))[: min(tokens, engine.info.max_model_len)]
        entries = (await engine.score(ids, logprobs=top)).entries
        scored.append([entry for entry in entries if entry is not None])
    return scored


def compare(exact: Sequence[Sequence[TokenLogprobs]], found: Sequence[Sequence[TokenLogprobs]]) -> Drift:
    """The drift of scores from those of the float model, both of the same tokens.

    Raises:
        ValueError: the tokens differ.
    """
    pairs = [pair for one, other in zip(exact, found, strict=True) for pair in zip(one, other, strict=True)]
    if any(true.token_id != other.token_id for true, other in pairs) or not pairs:
        raise ValueError("the two were not given the same tokens")
    surplus = sum(true.logprob - other.logprob for true, other in pairs) / len(pairs)
    same = sum(_best(true.top) == _best(other.top) for true, other in pairs)
    return Drift(
        perplexity_ratio=math.exp(min(50.0, max(-50.0, surplus))),
        mean_kl=sum(_divergence(true.top, other.top) for true, other in pairs) / len(pairs),
        top1_agreement=same / len(pairs),
        tokens=len(pairs),
    )


def _best(top: Mapping[int, float]) -> int:
    return max(top, key=top.__getitem__)


def _divergence(true: Mapping[int, float], found: Mapping[int, float]) -> float:
    """Of the tokens that both name, and of all others as one."""
    both = true.keys() & found.keys()
    p, q = [math.exp(true[token]) for token in both], [math.exp(found[token]) for token in both]
    p.append(max(1e-9, 1 - sum(p)))
    q.append(max(1e-9, 1 - sum(q)))
    return max(0.0, sum(one * math.log(one / other) for one, other in zip(p, q, strict=True) if one > 0))
