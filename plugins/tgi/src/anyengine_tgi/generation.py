"""TGI's two routes that generate, as deltas."""

from __future__ import annotations

import math
from itertools import count
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

#: Most tokens of one request. TGI works a longer one off in pieces of so many (``DEFAULT_GENERATION_LENGTH`` of its
#: router), each of which is due all of ``max_new_tokens`` again, with the same random numbers: so it goes too far, or
#: ends where the next whole piece no longer fits the context. What is longer is put together here.
PIECE = 1024
_REASONS: dict[FinishReason, Reason] = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class Generation:
    """Asks ``/generate`` and ``/generate_stream``.

    Args:
        client: to the server.
        prompts: proves what the server computed.
        max_input_tokens: the server's bound of a prompt.
        vocabulary: tokens that there are.
    """

    def __init__(self, client: ServerClient, prompts: Prompts, *, max_input_tokens: int, vocabulary: int) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._prompts = prompts
        self._max_input_tokens = max_input_tokens

    async def streamed(self, request: TokenRequest, text: str) -> AsyncGenerator[TokenDelta]:
        """The deltas of a request, token by token.

        Args:
            request: checked already.
            text: its prompt, proven to give its tokens.
        """
        sequence = Sequence(request)
        so_far = list(request.prompt_token_ids)
        for number in count():
            piece = min(request.max_tokens - sequence.total, PIECE)
            asked = parameters(request, vocabulary=self._vocabulary, max_new_tokens=piece, piece=number)
            body = {"inputs": text, "parameters": asked}
            before = len(so_far)
            async with self._client.events("/generate_stream", body) as events:
                async for event in events:
                    chunk = events.decoded(event, STREAM_DECODER)
                    if chunk.error is not UNSET:
                        raise events.error(event)
                    if chunk.details is not None:
                        self._prompts.check_length(before, chunk.details.input_length)
                    ids, entries, reason = self._taken(chunk, request)
                    so_far += ids
                    whole = reason == "length" and len(so_far) - before == piece
                    delta = sequence.take(ids, entries, None if whole else reason)
                    if delta is not None:
                        yield delta
                    if whole or sequence.finished:
                        if chunk.details is not None:
                            await drain(events)
                        break
                else:
                    raise events.cut_off()
            if sequence.finished:
                return
            text = await self._continued(request, text, so_far, len(so_far) - before)

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

    async def _continued(self, request: TokenRequest, text: str, so_far: list[int], new: int) -> str:
        """The text of prompt and completion so far, as the prompt of the next piece, proven like the first."""
        if request.structured is not None:
            what = "a constraint would start again"
        elif len(so_far) > self._max_input_tokens:
            what = f"the server takes prompts of at most {self._max_input_tokens} tokens"
        else:
            try:
                longer = self._prompts.continuation(text, so_far, new)
                await self._prompts.prove(longer, so_far)
            except UnsupportedParameter as error:
                what = f"no text gives its tokens again ({error.message})"
            else:
                return longer
        generated = len(so_far) - len(request.prompt_token_ids)
        raise UnsupportedParameter(
            f"max_tokens: after {generated} tokens TGI has to be asked anew, with the text so far, and {what}; ask for "
            f"at most {PIECE} at a time",
            field="max_tokens",
        )

    async def whole(self, request: TokenRequest, text: str) -> AsyncGenerator[TokenDelta]:
        """The same as one delta, of an answer that comes at once."""
        body = {"inputs": text, "parameters": parameters(request, vocabulary=self._vocabulary)}
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
