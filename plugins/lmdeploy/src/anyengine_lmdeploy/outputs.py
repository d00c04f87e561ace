"""From LMDeploy's outputs to ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine.backend import TokenDelta, TokenFinish
from anyengine.backend.logits import row_logprobs
from anyengine.errors import Failure
from anyengine.outputs import TokenLogprobs

from anyengine_lmdeploy.errors import status_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine.backend import TokenRequest

__all__ = ["Reader", "aborted", "scored"]


def aborted(request: TokenRequest) -> TokenDelta:
    """The last delta of a request that gives nothing more."""
    return TokenDelta([], None if request.logprobs is None else [], TokenFinish("abort"))


def _entry(token_id: int, values: Mapping[int, float], count: int) -> TokenLogprobs:
    """One token's log-probabilities.

    Args:
        token_id: the chosen token.
        values: token id → log-probability: the most likely tokens and the chosen one.
        count: alternatives that were asked for.
    """
    # Rounding may leave a certainty a hair above 0.
    ranked = sorted(((token, min(value, 0.0)) for token, value in values.items()), key=lambda item: (-item[1], item[0]))
    top = dict(ranked[:count])
    own = min(values[token_id], 0.0)
    top.setdefault(token_id, own)
    return TokenLogprobs(token_id, own, top)


def scored(token_ids: Sequence[int], rows: Sequence[Mapping[int, float]], count: int) -> list[TokenLogprobs | None]:
    """Of a text that is there: one entry a token, the first None.

    Raises:
        Failure: LMDeploy did not return what was asked for.
    """
    if len(rows) != len(token_ids) - 1:
        raise Failure(f"LMDeploy returned {len(rows)} log-probabilities for {len(token_ids)} tokens")
    return [None, *(_entry(token, row, count) for token, row in zip(token_ids[1:], rows, strict=True))]


class Reader:
    """Reads the outputs of one request.

    Args:
        request: what was asked for.
        statuses: LMDeploy's ``ResponseType``.
        prompt_logprobs: of the prompt, where they were worked out before.
    """

    def __init__(
        self,
        request: TokenRequest,
        statuses: Any,
        prompt_logprobs: list[TokenLogprobs | None] | None,
    ) -> None:
        self._request = request
        self._success, self._finish, self._cancel = statuses.SUCCESS, statuses.FINISH, statuses.CANCEL
        self._prompt_logprobs = prompt_logprobs
        self._terminators = request.terminators
        self._wants_logits = request.logprobs is not None or request.prompt_logprobs is not None
        self._seen = 0
        self._last: int | None = None

    def plain(self, output: Any) -> TokenDelta | None:
        """New tokens and nothing else, as nearly all outputs are; None for the rest."""
        token_ids: list[int] = output.token_ids
        if output.status is not self._success or self._wants_logits or not token_ids:
            return None
        self._last = token_ids[-1]
        return TokenDelta(token_ids, None)

    async def read(self, output: Any) -> TokenDelta:
        """Any other output.

        Raises:
            AnyEngineError: LMDeploy gave the request up.
        """
        status, token_ids = output.status, output.token_ids
        if status not in {self._success, self._finish, self._cancel}:
            raise status_error(status, self._request)
        if status is self._cancel:
            return aborted(self._request)
        logprobs = None if self._request.logprobs is None else await self._logprobs(output, token_ids)
        if output.logits is not None and self._request.prompt_logprobs is not None and self._prompt_logprobs is None:
            self._prompt_logprobs = await self._of_prompt(output.logits)
        self._seen += len(token_ids)
        if token_ids:
            self._last = token_ids[-1]
        return TokenDelta(token_ids, logprobs, self._finished(output) if status is self._finish else None)

    def _finished(self, output: Any) -> TokenFinish:
        metrics = output.req_metrics
        if self._request.prompt_logprobs is not None and self._prompt_logprobs is None:
            raise Failure("LMDeploy ended a request without the logits of its prompt")
        return TokenFinish(
            "stop" if self._last in self._terminators else "length",
            cached_tokens=None if metrics is None else int(metrics.cached_tokens),
            prompt_logprobs=self._prompt_logprobs,
        )

    async def _logprobs(self, output: Any, token_ids: list[int]) -> list[TokenLogprobs]:
        count = self._request.logprobs or 0
        if not token_ids:
            return []
        if output.logits is not None:
            first = self._seen
            if self._request.prompt_logprobs is not None:
                first += len(self._request.prompt_token_ids) - 1
            rows = output.logits[first : first + len(token_ids)]
            if len(rows) == len(token_ids):
                # Milliseconds a row with a large vocabulary.
                return await asyncio.to_thread(row_logprobs, rows, token_ids, count)
        elif output.logprobs is not None and len(output.logprobs) == len(token_ids):
            return [_entry(token, values, count) for token, values in zip(token_ids, output.logprobs, strict=True)]
        raise Failure(f"LMDeploy returned {len(token_ids)} tokens without log-probabilities for each")

    async def _of_prompt(self, logits: Any) -> list[TokenLogprobs | None]:
        prompt = self._request.prompt_token_ids
        rows = logits[: len(prompt) - 1]
        return [None, *await asyncio.to_thread(row_logprobs, rows, prompt[1:], self._request.prompt_logprobs or 0)]
