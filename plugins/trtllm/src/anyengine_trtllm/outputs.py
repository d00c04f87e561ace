"""From TensorRT-LLM's outputs to ours.

A stream of TensorRT-LLM yields one object again and again, which grows. :class:`Reader` copies what is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend import TokenDelta, TokenFinish
from anyengine.backend.logits import row_logprobs
from anyengine.errors import Failure

from anyengine_trtllm.request import end_id

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from anyengine.outputs import FinishReason, TokenLogprobs

__all__ = ["Reader", "aborted"]

#: TensorRT-LLM's reasons that are ours; ``timeout`` and ``not_finished`` are not.
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "cancelled": "abort"}


def aborted(request: TokenRequest) -> TokenDelta:
    """The last delta of a request that gives nothing more."""
    return TokenDelta([], None if request.logprobs is None else [], TokenFinish("abort"))


class Reader:
    """Reads the outputs of one request.

    Args:
        request: what was asked for.
        cached_tokens: whether the engine counts them.
    """

    def __init__(self, request: TokenRequest, *, cached_tokens: bool) -> None:
        self._request = request
        self._cached_tokens = cached_tokens
        self._seen = 0

    def read(self, result: Any) -> TokenDelta:
        """What is new in a ``RequestOutput``; lists of our own, since that object goes on changing.

        Raises:
            Failure: TensorRT-LLM gave the request up, or did not return what was asked for.
        """
        output = result.outputs[0]
        token_ids = list(output.token_ids[self._seen :])
        reason = self._reason(output)
        if reason == "stop":
            token_ids = self._terminated(token_ids)
        self._seen += len(token_ids)
        logprobs = None
        if self._request.logprobs is not None:
            if reason == "abort":
                # Of what was cut off there are no logits.
                token_ids = []
            logprobs = self._logprobs(output, token_ids) if token_ids else []
        return TokenDelta(token_ids, logprobs, None if reason is None else self._finish(result, reason))

    def _reason(self, output: Any) -> FinishReason | None:
        if output.finish_reason is None:
            return None
        reason = _REASONS.get(output.finish_reason)
        if reason is None:
            raise Failure(f"TensorRT-LLM ended the request with reason {output.finish_reason!r}; its log says why")
        last = output.token_ids[-1] if output.token_ids else None
        if reason == "length" and last in self._request.terminators:
            # To the sampler in PyTorch the length counts for more than a stop word, to the one in C++ for less.
            return "stop"
        return reason

    def _terminated(self, token_ids: list[int]) -> list[int]:
        """With the token that ended it; the sampler in C++ leaves the engine's own end token out."""
        end = end_id(self._request)
        if end is not None and (not token_ids or token_ids[-1] != end):
            token_ids.append(end)
        return token_ids

    def _logprobs(self, output: Any, token_ids: list[int]) -> list[TokenLogprobs]:
        """Such requests are not streamed: all logits come at once."""
        rows = output.generation_logits
        if rows is None or len(rows) < len(token_ids):
            given = "no" if rows is None else f"{len(rows)} rows of"
            raise Failure(f"TensorRT-LLM returned {given} logits for {len(token_ids)} tokens; logprobs cannot be given")
        return row_logprobs(rows[: len(token_ids)], token_ids, self._request.logprobs or 0)

    def _finish(self, result: Any, reason: FinishReason) -> TokenFinish:
        cached = result.cached_tokens if self._cached_tokens else None
        return TokenFinish(
            reason,
            cached_tokens=None if cached is None else min(int(cached), len(self._request.prompt_token_ids)),
            prompt_logprobs=self._prompt_logprobs(result, reason),
        )

    def _prompt_logprobs(self, result: Any, reason: FinishReason) -> list[TokenLogprobs | None] | None:
        if self._request.prompt_logprobs is None or reason == "abort":
            return None
        prompt = self._request.prompt_token_ids
        rows = result.context_logits
        if rows is None or len(rows) < len(prompt):
            # Rows of a prefix that came out of the cache would be missing; requests that want them share none.
            given = "no" if rows is None else f"{len(rows)} rows of"
            raise Failure(f"TensorRT-LLM returned {given} logits for {len(prompt)} prompt tokens")
        return [None, *row_logprobs(rows[: len(prompt) - 1], prompt[1:], self._request.prompt_logprobs)]
