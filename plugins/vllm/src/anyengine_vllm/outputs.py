"""From vLLM's outputs to ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend import TokenDelta, TokenFinish
from anyengine.errors import AnyEngineError, Failure, InvalidRequest
from anyengine.outputs import FinishReason, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine.backend import TokenRequest

__all__ = ["delta", "prompt_logprobs", "token_logprobs", "whole_prompt"]

#: vLLM's reasons that are ours; ``error`` and ``repetition`` are not.
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def token_logprobs(token_id: int, entries: Mapping[int, Any]) -> TokenLogprobs:
    """One token's log-probabilities.

    Args:
        token_id: the chosen token.
        entries: token id → vLLM's ``Logprob``: the most likely tokens and the chosen one, in no certain order.
    """
    # Rounding may leave a certainty a hair above 0.
    values = {token: min(entry.logprob, 0.0) for token, entry in entries.items()}
    top = dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))
    return TokenLogprobs(token_id, values[token_id], top)


def prompt_logprobs(
    token_ids: Sequence[int], entries: Sequence[Mapping[int, Any] | None]
) -> list[TokenLogprobs | None]:
    """One entry a prompt token, the first None."""
    return [
        None if entry is None else token_logprobs(token_id, entry)
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]


def whole_prompt(output: Any, request: TokenRequest) -> Sequence[Mapping[int, Any] | None] | None:
    """Log-probabilities of the prompt, which were asked for, where this of vLLM's outputs has them.

    One output does, the one with which the prompt has been computed. Later ones have an empty list, and a request that
    is aborted before has a list with no more than the first entry.
    """
    entries: Sequence[Mapping[int, Any] | None] | None = output.prompt_logprobs
    if entries is None or len(entries) != len(request.prompt_token_ids):
        return None
    return entries


def delta(output: Any, request: TokenRequest, prompt_entries: Sequence[Mapping[int, Any] | None] | None) -> TokenDelta:
    """One of vLLM's outputs.

    Args:
        output: a ``RequestOutput`` with one sequence.
        request: what was asked for.
        prompt_entries: log-probabilities of the prompt, as :func:`whole_prompt` found them; None if it has not.

    Raises:
        InvalidRequest: vLLM gave the request up, and its constraint is why.
        Failure: vLLM gave the request up.
    """
    sequence = output.outputs[0]
    token_ids: list[int] = list(sequence.token_ids)
    logprobs = None
    if sequence.logprobs is not None:
        # An output without tokens (an abort) comes with those of all tokens before it.
        entries: list[Mapping[int, Any]] = sequence.logprobs[-len(token_ids) :] if token_ids else []
        logprobs = [token_logprobs(*pair) for pair in zip(token_ids, entries, strict=True)]
    if sequence.finish_reason is None:
        return TokenDelta(token_ids, logprobs)
    reason = _REASONS.get(sequence.finish_reason)
    if reason is None:
        raise _given_up(request, sequence.finish_reason)
    cached = output.num_cached_tokens
    return TokenDelta(
        token_ids,
        logprobs,
        TokenFinish(
            reason,
            cached_tokens=None if cached is None or cached < 0 else cached,
            prompt_logprobs=None
            if prompt_entries is None
            else prompt_logprobs(request.prompt_token_ids, prompt_entries),
        ),
    )


def _given_up(request: TokenRequest, reason: str) -> AnyEngineError:
    """Why is not said; with a constraint it is that constraint, whose compiler ran into one of its bounds."""
    if request.structured is None:
        return Failure(f"vLLM ended the request with reason {reason!r}; its log says why")
    field = f"structured.{request.structured.kind}"
    return InvalidRequest(
        f"{field}: vLLM could not follow it to the end, and ended the request with reason {reason!r}; make it simpler",
        field=field,
    )
