"""From what a server sends to deltas that keep the contract of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from anyengine.backend import TokenDelta, TokenFinish
from anyengine.errors import Failure

from anyengine_server.errors import MalformedAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from anyengine.backend import TokenRequest
    from anyengine.outputs import TokenLogprobs

__all__ = ["Reason", "Sequence"]

#: Why the server says that a sequence ended.
Reason = Literal["stop", "length", "abort"]


class Sequence:
    """One sequence as it grows.

    Ends it at the first terminating token, whatever the server goes on to send: so a server that knows none of the
    caller's own stop tokens honours them too. What it does not send cannot be made up: a server that stops for a reason
    of its own is an error.

    Args:
        request: what was asked for.
    """

    __slots__ = ("_finished", "_request", "_terminators", "_total")

    def __init__(self, request: TokenRequest) -> None:
        self._request = request
        self._terminators = request.terminators
        self._total = 0
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether its last delta was made."""
        return self._finished

    @property
    def total(self) -> int:
        """Tokens so far."""
        return self._total

    def take(
        self,
        token_ids: SequenceOf[int],
        logprobs: SequenceOf[TokenLogprobs] | None = None,
        reason: Reason | None = None,
    ) -> TokenDelta | None:
        """The delta of what came; None if there is nothing new in it.

        Args:
            token_ids: new tokens.
            logprobs: one entry a token, if they were asked for.
            reason: if the server says that this is the end.

        Raises:
            MalformedAnswer: log-probabilities that do not belong to the tokens.
            Failure: the server ended the sequence where nothing that was asked for ends it.
        """
        if self._finished:
            return None
        tokens = list(token_ids)
        entries = None
        if self._request.logprobs is not None:
            entries = list(logprobs or ())
            if [entry.token_id for entry in entries] != tokens:
                raise MalformedAnswer("the server's log-probabilities are not those of the tokens that it sent")
        finish = self._finish(tokens, reason)
        if finish is None and not tokens:
            return None
        if entries is not None:
            entries = entries[: len(tokens)]
        self._total += len(tokens)
        self._finished = finish is not None
        return TokenDelta(tokens, entries, None if finish is None else TokenFinish(finish))

    def _finish(self, tokens: list[int], reason: Reason | None) -> Reason | None:
        """Why the sequence ends here; cuts off what comes after its end."""
        for place, token in enumerate(tokens):
            if token in self._terminators:
                del tokens[place + 1 :]
                return "stop"
            if self._total + place + 1 == self._request.max_tokens:
                del tokens[place + 1 :]
                return "length"
        if reason in {None, "abort"}:
            return reason
        last = tokens[-1] if tokens else "an earlier token"
        raise Failure(
            f"the server ended a sequence ({reason}) after {self._total + len(tokens)} of {self._request.max_tokens} "
            f"tokens, at {last}, which is none of {sorted(self._terminators)}; its model has another end, or a context "
            "that is shorter"
        )
