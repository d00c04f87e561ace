"""What a sequence has come to: token deltas of the backend in, chunks of text out. The per-token path."""

from __future__ import annotations

from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING

from anyengine.outputs import Chunk, Completion, Finish, Timings, Usage
from anyengine.runtime.contract import broken, check_finish, check_logprobs, check_terminator, wrong_delta
from anyengine.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from anyengine.backend import TokenDelta, TokenFinish, TokenRequest
    from anyengine.outputs import FinishReason
    from anyengine.request import GenerateRequest
    from anyengine.text.decoding import DecoderTable

__all__ = ["Transcript"]


class Transcript:
    """Text and accounting of one of a request's ``n`` sequences; every delta is held against the contract.

    Attributes:
        count: tokens so far, of those that are kept.
        queue: seconds from the call until the engine had it; None before.
    """

    def __init__(
        self,
        *,
        request: GenerateRequest,
        tokens: TokenRequest,
        index: int,
        engine: str,
        table: DecoderTable,
        called: float,
    ) -> None:
        self.count = 0
        self.queue: float | None = None
        self._tokens = tokens
        self._index = index
        self._engine = engine
        self._called = called
        self._text = Detokenizer(
            table,
            stops=tuple(request.stop),
            min_tokens=request.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
            include_stop=request.include_stop,
        )
        self._terminators = tokens.terminators
        self._first_token: float | None = None

    def chunk(self, delta: TokenDelta, *, streamed: bool = True) -> Chunk:  # noqa: C901 a call would cost more
        """Text and accounting for one delta."""
        token_ids = delta.token_ids
        finish = delta.finish
        for token_id in token_ids:  # what only equals an int (3.0, True, NumPy's) would come out as text, or not at all
            if type(token_id) is not int:
                raise wrong_delta(self._engine, delta) or broken(self._engine, f"gave the token id {token_id!r}")
        total = self.count + len(token_ids)
        # This runs for every token: what is rare, or asked for rarely, is checked elsewhere.
        if finish is not None:
            check_finish(self._engine, self._tokens, delta, finish, total)
        elif not token_ids:
            raise broken(self._engine, "gave a delta without a token that is not the last one")
        if total > self._tokens.max_tokens:
            raise broken(self._engine, f"gave {total} tokens where max_tokens is {self._tokens.max_tokens}")
        if not self._terminators.isdisjoint(token_ids):
            check_terminator(self._engine, self._tokens, token_ids, finish, total)
        if delta.logprobs is not None or self._tokens.logprobs is not None:
            check_logprobs(self._engine, self._tokens, token_ids, delta.logprobs)
        if streamed and token_ids and self._first_token is None:
            self._first_token = monotonic()
        by_token = finish is not None and finish.reason == "stop"
        text = self._text.feed(token_ids, terminated=by_token)
        if finish is not None and self._text.stopped is None:
            text += self._text.finish()
        match = self._text.stopped
        if match is not None:
            # Tokens beyond the one that completed the stop string are discarded, never counted.
            keep = self._text.num_tokens - self.count
            self.count += keep
            logprobs = None if delta.logprobs is None else delta.logprobs[:keep]
            return Chunk(text, token_ids[:keep], logprobs, self._index, self._finish("stop", match.stop, finish))
        self.count = total
        if finish is None:
            return Chunk(text, token_ids, delta.logprobs, self._index)
        end = self._finish(finish.reason, token_ids[-1] if by_token else None, finish)
        return Chunk(text, token_ids, delta.logprobs, self._index, end)

    def cut_off(self) -> Chunk:
        """The last chunk of a sequence that is left before its end."""
        # What was held back as the possible beginning of a stop string, or of a character.
        return Chunk(self._text.finish(), [], None, self._index, self._finish("abort", None, None))

    def _finish(self, reason: FinishReason, stop_reason: str | int | None, finish: TokenFinish | None) -> Finish:
        total = monotonic() - self._called
        return Finish(
            reason,
            stop_reason,
            Usage(len(self._tokens.prompt_token_ids), self.count, None if finish is None else finish.cached_tokens),
            Timings(
                queue=total if self.queue is None else self.queue,
                time_to_first_token=None if self._first_token is None else self._first_token - self._called,
                total=total,
            ),
            self._tokens.sampling.seed,
            None if finish is None else finish.prompt_logprobs,
        )

    def completion(self, chunks: list[Chunk]) -> Completion:
        """The sequence as one, out of all its chunks."""
        finish = chunks[-1].finish
        if finish is None:
            raise broken(self._engine, "gave a result without a finish")
        logprobs = chain.from_iterable([chunk.logprobs or () for chunk in chunks])
        return Completion(
            text="".join([chunk.text for chunk in chunks]),
            token_ids=list(chain.from_iterable([chunk.token_ids for chunk in chunks])),
            prompt_token_ids=self._tokens.prompt_token_ids,
            finish_reason=finish.reason,
            stop_reason=finish.stop_reason,
            usage=finish.usage,
            timings=finish.timings,
            seed=finish.seed,
            logprobs=None if self._tokens.logprobs is None else list(logprobs),
            prompt_logprobs=finish.prompt_logprobs,
            index=self._index,
        )
