"""TGI's two routes that generate, as deltas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from anyengine.errors import UnsupportedParameter
from anyengine.outputs import TokenLogprobs
from anyengine_server import MalformedAnswer, Sequence, drain
from msgspec import UNSET

from anyengine_tgi.request import parameters
from anyengine_tgi.wire import STREAM_DECODER, GenerateResponse, StreamResponse, Token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as SequenceOf

    from anyengine.backend import TokenDelta, TokenRequest
    from anyengine_server import Reason, ServerClient

    from anyengine_tgi.prompts import Prompts
    from anyengine_tgi.wire import FinishReason

__all__ = ["PIECE", "Generation"]

#: Tokens after which TGI starts a longer request anew, from its text (``DEFAULT_GENERATION_LENGTH`` of its router).
PIECE = 1024
_REASONS: dict[FinishReason, Reason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class Generation:
    """Asks ``/generate`` and ``/generate_stream``.

    Args:
        client: to the server.
        prompts: proves what the server computed.
    """

    def __init__(self, client: ServerClient, prompts: Prompts) -> None:
        self._client = client
        self._prompts = prompts

    async def streamed(self, request: TokenRequest, text: str) -> AsyncGenerator[TokenDelta]:
        """The deltas of a request, token by token.

        Args:
            request: checked already.
            text: its prompt, proven to give its tokens.
        """
        sequence = Sequence(request)
        generated: list[int] = []
        body = {"inputs": text, "parameters": parameters(request)}
        async with self._client.events("/generate_stream", body) as events:
            async for event in events:
                chunk = events.decoded(event, STREAM_DECODER)
                if chunk.error is not UNSET:
                    raise events.error(event)
                if chunk.details is not None:
                    self._prompts.check_length(request, chunk.details.input_length)
                delta = sequence.take(*self._taken(chunk, request))
                if delta is not None:
                    generated += delta.token_ids
                    yield delta
                if sequence.finished:
                    if chunk.details is not None:
                        await drain(events)
                    return
                if len(generated) % PIECE == 0:
                    self._check_continuation(request, text, generated)
            raise events.cut_off()

    @staticmethod
    def _taken(
        chunk: StreamResponse, request: TokenRequest
    ) -> tuple[list[int], list[TokenLogprobs] | None, Reason | None]:
        if not isinstance(chunk.token, Token):
            raise MalformedAnswer("TGI sent an event without a token")
        entries = None
        if request.logprobs is not None:
            entries = [_entry(chunk.token, chunk.top_tokens, request.logprobs)]
        reason = None if chunk.details is None else _REASONS[chunk.details.finish_reason]
        return [chunk.token.id], entries, reason

    def _check_continuation(self, request: TokenRequest, text: str, generated: list[int]) -> None:
        if request.structured is None and self._prompts.continues(text, request.prompt_token_ids, generated):
            return
        what = "starts the constraint again" if request.structured is not None else "makes other tokens of it"
        raise UnsupportedParameter(
            f"max_tokens: after {len(generated)} tokens TGI starts a request anew with its text so far, and {what}; "
            f"ask for at most {PIECE} at a time",
            field="max_tokens",
        )

    async def whole(self, request: TokenRequest, text: str) -> AsyncGenerator[TokenDelta]:
        """The same as one delta, of an answer that comes at once."""
        body = {"inputs": text, "parameters": parameters(request)}
        details = (await self._client.post_json("/generate", body, GenerateResponse)).details
        if details is None:
            raise MalformedAnswer("TGI answered without details")
        entries = None
        if request.logprobs is not None:
            tops: list[list[Token]] = details.top_tokens or [[] for _ in details.tokens]
            if len(tops) != len(details.tokens):
                raise MalformedAnswer("TGI's alternatives do not belong to its tokens")
            entries = [_entry(token, top, request.logprobs) for token, top in zip(details.tokens, tops, strict=True)]
        ids = [token.id for token in details.tokens]
        delta = Sequence(request).take(ids, entries, _REASONS[details.finish_reason])
        if delta is None:
            raise MalformedAnswer("TGI answered without tokens")
        yield delta

    async def prefill(self, text: str, token_ids: list[int]) -> list[TokenLogprobs | None]:
        """Log-probabilities of a prompt, from a request of one token: a stream has none."""
        body = {"inputs": text, "parameters": {"max_new_tokens": 1, "decoder_input_details": True, "details": True}}
        details = (await self._client.post_json("/generate", body, GenerateResponse)).details
        prefill = [] if details is None else details.prefill
        self._prompts.check(token_ids, [token.id for token in prefill])
        entries: list[TokenLogprobs | None] = [None]
        for token in prefill[1:]:
            if token.logprob is None:
                raise MalformedAnswer("TGI left out the log-probability of a prompt token")
            entries.append(TokenLogprobs(token.id, token.logprob, {token.id: token.logprob}))
        return entries


def _entry(token: Token, top: SequenceOf[Token], wanted: int) -> TokenLogprobs:
    """The chosen token among as many of the most likely as were asked for; TGI sends more where some are equal."""
    if token.logprob is None:
        raise MalformedAnswer(f"TGI left out the log-probability of token {token.id}")
    likely: dict[int, float] = {other.id: -math.inf if other.logprob is None else other.logprob for other in top}
    ranked = sorted((likely | {token.id: token.logprob}).items(), key=lambda pair: (-pair[1], pair[0]))
    kept: dict[int, Any] = dict(ranked[:wanted])
    kept.setdefault(token.id, token.logprob)
    return TokenLogprobs(token.id, token.logprob, kept)
