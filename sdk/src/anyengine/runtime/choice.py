"""One sequence: token deltas of the backend in, chunks of text out. The per-token path."""

from __future__ import annotations

import asyncio
import math
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine._concurrency import despite_cancellation
from anyengine.backend import TokenDelta, TokenFinish
from anyengine.errors import AnyEngineError, EngineUnresponsive, RequestTimeout
from anyengine.outputs import Chunk, Completion, Finish, Timings, Usage
from anyengine.runtime.contract import (
    broken,
    cancelled_itself,
    cause,
    check_finish,
    check_logprobs,
    check_prompt_logprobs,
    check_terminator,
    check_types,
    mapped,
    wrong_delta,
)
from anyengine.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyengine.backend import TokenRequest
    from anyengine.outputs import FinishReason
    from anyengine.request import GenerateRequest
    from anyengine.runtime.admission import Admission
    from anyengine.text.decoding import DecoderTable

__all__ = ["ChoiceStream"]


class ChoiceStream:
    """The chunks of one of a request's ``n`` sequences. Lazy: admission and submission happen on the first read.

    ``patience`` is how many seconds the engine has to end what was aborted.
    """

    def __init__(
        self,
        *,
        request: GenerateRequest,
        tokens: TokenRequest,
        index: int,
        hooks: Any,
        engine: str,
        admission: Admission,
        flow: int,
        reserved: bool,
        table: DecoderTable,
        called: float,
        patience: float,
    ) -> None:
        self.tokens = tokens
        self.index = index
        self._hooks = hooks
        self._engine = engine
        self._admission = admission
        self._flow = flow
        self._reserved = reserved
        self._called = called
        self._patience = patience
        self._deadline = None if request.timeout is None else called + request.timeout
        self._request = request
        self._text = Detokenizer(
            table,
            stops=tuple(request.stop),
            min_tokens=request.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
            include_stop=request.include_stop,
        )
        self._terminators = tokens.terminators
        self._source: AsyncIterator[TokenDelta] | None = None
        self._submitted: float | None = None  # None again once the place is given back
        self._queue: float | None = None
        self._first_token: float | None = None
        self._count = 0
        self._over = False
        self._late = False
        self._hung = False  # an abort did not return: another one would be waited for in vain
        # What a timeout hands over; kept only where there can be one.
        self._partial: list[Chunk] | None = None if self._deadline is None else []

    def __aiter__(self) -> ChoiceStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        delta: TokenDelta | None = None
        try:
            if self._deadline is None:
                delta = await (self._source or await self._start()).__anext__()
            else:
                delta = await self._next_in_time(self._deadline)
            chunk = self._chunk(delta)
            if chunk.finish is not None:
                self._over = True
                chunk = await self._end(chunk, delta)
        except StopAsyncIteration:
            raise await self._failed(broken(self._engine, "ended its stream without a finish")) from None
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise await self._failed(error, delta) from cause(error)
        except asyncio.CancelledError:
            if cancelled_itself():
                raise await self._failed(broken(self._engine, "cancelled its own stream")) from None
            raise
        if self._partial is not None:
            self._partial.append(chunk)
            # What lay ready for a reader who came late is still handed over; the next read is refused.
            self._late = chunk.finish is None and monotonic() >= (self._deadline or 0)
        return chunk

    @property
    def ended(self) -> bool:
        """See :class:`anyengine.runtime.base.ChunkStream`."""
        return self._over and self._submitted is None and not self._reserved

    async def run(self) -> Completion:
        """Generate to the end, final result only where nothing has to be watched on the way."""
        delta: TokenDelta | None = None
        try:
            if self._request.stop or self._deadline is not None:
                chunks = [chunk async for chunk in self]
            else:
                await self._admit()
                delta = _checked(await self._hooks.generate(request=self.tokens))
                chunks = [self._chunk(delta, streamed=False)]
                self._over = True
                self._release()
            finish = chunks[-1].finish
            if finish is None:
                raise broken(self._engine, "gave a result without a finish")
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise await self._failed(error, delta) from cause(error)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and cancelled_itself():
                raise await self._failed(broken(self._engine, "cancelled its own request")) from None
            await self.close_after(error)
            raise
        return collect(chunks, self.tokens, finish)

    def partial(self) -> Completion | None:
        """What there is when the time is up; None if no token has come. Nothing more can be read afterwards."""
        chunks = self._partial
        if not chunks or not self._count:
            return None
        finish = chunks[-1].finish
        if finish is None:
            finish = self._finish("abort", None, None)
            # What was held back as the possible beginning of a stop string, or of a character.
            chunks.append(Chunk(self._text.finish(), [], None, self.index, finish))
        return collect(chunks, self.tokens, finish)

    def _timed_out(self) -> RequestTimeout:
        message = f"the request ran past its timeout of {self._request.timeout} s, after {self._count} tokens"
        return RequestTimeout(message, engine=self._engine, partial=self.partial())

    async def _failed(self, error: Exception, delta: TokenDelta | None = None) -> AnyEngineError:
        """Leave the engine, and say what is raised: our own errors as they are, others as the plugin's.

        Args:
            error: what went wrong.
            delta: what was being read; one that is not as it has to be is named, not what that led to.
        """
        ours = delta is None or isinstance(error, AnyEngineError)
        raised = (None if ours else wrong_delta(self._engine, delta)) or mapped(error, self._engine)
        await self.close_after(raised)
        return raised

    async def close_after(self, error: BaseException) -> None:
        """``aclose`` where something is being raised already: a second failure is noted, and does not replace it."""
        try:
            await self.aclose()
        except AnyEngineError as second:
            error.add_note(f"and then: {second.message}")

    async def _admit(self) -> None:
        reserved, self._reserved = self._reserved, False
        await self._admission.acquire(self._flow, reserved=reserved)
        self._submitted = monotonic()
        self._queue = self._submitted - self._called

    async def _start(self) -> AsyncIterator[TokenDelta]:
        if self._submitted is None:
            await self._admit()
        source = self._hooks.stream(request=self.tokens)
        if not hasattr(source, "__anext__"):
            close = getattr(source, "close", None)
            if close is not None:  # a coroutine that nobody will await
                close()
            raise broken(self._engine, f"returned a {type(source).__name__} from stream, not an asynchronous iterator")
        self._source = source
        return source

    async def _next_in_time(self, deadline: float) -> TokenDelta:
        if self._late:
            raise self._timed_out()
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout_at(loop.time() + deadline - monotonic())
        try:
            async with limit:
                return await (self._source or await self._start()).__anext__()
        except TimeoutError as error:
            if not limit.expired():  # the engine's own, not ours
                raise
            raise self._timed_out() from error

    def _chunk(self, delta: TokenDelta, *, streamed: bool = True) -> Chunk:  # noqa: C901 a call would cost more
        """Text and accounting for one delta."""
        token_ids = delta.token_ids
        finish = delta.finish
        for token_id in token_ids:  # what only equals an int (3.0, True, NumPy's) would come out as text, or not at all
            if type(token_id) is not int:
                raise wrong_delta(self._engine, delta) or broken(self._engine, f"gave the token id {token_id!r}")
        total = self._count + len(token_ids)
        # This runs for every token: what is rare, or asked for rarely, is checked elsewhere.
        if finish is not None:
            check_finish(self._engine, self.tokens, delta, finish, total)
        elif not token_ids:
            raise broken(self._engine, "gave a delta without a token that is not the last one")
        if total > self.tokens.max_tokens:
            raise broken(self._engine, f"gave {total} tokens where max_tokens is {self.tokens.max_tokens}")
        if not self._terminators.isdisjoint(token_ids):
            check_terminator(self._engine, self.tokens, token_ids, finish, total)
        if delta.logprobs is not None or self.tokens.logprobs is not None:
            check_logprobs(self._engine, self.tokens, token_ids, delta.logprobs)
        if streamed and token_ids and self._first_token is None:
            self._first_token = monotonic()
        by_token = finish is not None and finish.reason == "stop"
        text = self._text.feed(token_ids, terminated=by_token)
        if finish is not None and self._text.stopped is None:
            text += self._text.finish()
        match = self._text.stopped
        if match is not None:
            # Tokens beyond the one that completed the stop string are discarded, never counted.
            keep = self._text.num_tokens - self._count
            self._count += keep
            logprobs = None if delta.logprobs is None else delta.logprobs[:keep]
            return Chunk(text, token_ids[:keep], logprobs, self.index, self._finish("stop", match.stop, finish))
        self._count = total
        if finish is None:
            return Chunk(text, token_ids, delta.logprobs, self.index)
        end = self._finish(finish.reason, token_ids[-1] if by_token else None, finish)
        return Chunk(text, token_ids, delta.logprobs, self.index, end)

    def _finish(self, reason: FinishReason, stop_reason: str | int | None, finish: TokenFinish | None) -> Finish:
        total = monotonic() - self._called
        return Finish(
            reason,
            stop_reason,
            Usage(len(self.tokens.prompt_token_ids), self._count, None if finish is None else finish.cached_tokens),
            Timings(
                queue=total if self._queue is None else self._queue,
                time_to_first_token=None if self._first_token is None else self._first_token - self._called,
                total=total,
            ),
            self.tokens.sampling.seed,
            None if finish is None else finish.prompt_logprobs,
        )

    async def _end(self, chunk: Chunk, delta: TokenDelta) -> Chunk:
        """Leave the engine; where a stop string ended the text before the engine did, hear its last word first."""
        source, end = self._source, chunk.finish
        if delta.finish is None and source is not None and end is not None:
            await despite_cancellation(self._abort())
            heard = await self._last_word(source, chunk)
            check_types(self._engine, heard, TokenFinish | None)
            check_prompt_logprobs(self._engine, self.tokens, heard)
            if heard is not None:
                usage = replace(end.usage, cached_tokens=heard.cached_tokens)
                chunk = replace(chunk, finish=replace(end, usage=usage, prompt_logprobs=heard.prompt_logprobs))
        self._source = None
        aclose = getattr(source, "aclose", None)
        if aclose is not None:  # a generator that has given its last item still stands at its last yield
            await aclose()
        self._release()
        return chunk

    async def _last_word(self, source: AsyncIterator[TokenDelta], chunk: Chunk) -> TokenFinish | None:
        """What the engine says at the end of a sequence that it was told to abort.

        Args:
            source: its stream.
            chunk: the sequence's last one, as it is without that.

        Raises:
            RequestTimeout: the time of the request was up first; with the whole sequence.
            EngineUnresponsive: the stream did not end.
        """
        left = math.inf if self._deadline is None else self._deadline - monotonic()
        limit = asyncio.timeout(min(left, self._patience))
        heard: TokenFinish | None = None
        try:
            async with limit:
                async for last in source:
                    heard = last.finish or heard
        except TimeoutError as error:
            if not limit.expired():  # the engine's own, not ours
                raise
            if self._partial is not None and left <= self._patience:
                self._partial.append(chunk)
                raise self._timed_out() from error
            raise self._hangs("its plugin's stream does not end") from error
        return heard

    def _hangs(self, otherwise: str) -> EngineUnresponsive:
        return EngineUnresponsive(
            f"{self._engine} has not ended a request within {self._patience:g} s of its abort (health_timeout): it "
            f"hangs, or {otherwise}; load a new engine",
            engine=self._engine,
        )

    def _release(self) -> None:
        submitted, self._submitted = self._submitted, None
        if submitted is not None:
            self._admission.release(monotonic() - submitted)

    async def _abort(self) -> None:
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                await self._hooks.abort(request_id=self.tokens.id)
        except Exception as error:  # mapped, never swallowed
            if limit.expired() and isinstance(error, TimeoutError):
                self._hung = True
                raise self._hangs("its plugin's abort does not return") from error
            raise mapped(error, self._engine) from cause(error)

    async def aclose(self) -> None:
        """Abort what still runs; the engine holds nothing of the sequence when this returns. Idempotent."""
        self._over = True
        if self._reserved:
            self._reserved = False
            self._admission.give_back()
        if self._submitted is None:
            return
        source, self._source = self._source, None
        try:
            if not self._hung:
                await despite_cancellation(self._abort())
        finally:
            try:
                aclose = getattr(source, "aclose", None)
                if aclose is not None:  # in the task that read it: its own cancel scopes and contexts ask for that
                    await aclose()
            except Exception as error:  # noqa: BLE001 as above
                raise mapped(error, self._engine) from cause(error)
            finally:
                self._release()


def _checked(result: object) -> TokenDelta:
    if not isinstance(result, TokenDelta):
        raise TypeError(f"generate returned a {type(result).__name__}, not a TokenDelta")
    return result


def collect(chunks: list[Chunk], tokens: TokenRequest, finish: Finish) -> Completion:
    """One completion out of a sequence's chunks."""
    return Completion(
        text="".join([chunk.text for chunk in chunks]),
        token_ids=list(chain.from_iterable([chunk.token_ids for chunk in chunks])),
        prompt_token_ids=tokens.prompt_token_ids,
        finish_reason=finish.reason,
        stop_reason=finish.stop_reason,
        usage=finish.usage,
        timings=finish.timings,
        seed=finish.seed,
        logprobs=None if tokens.logprobs is None else [entry for chunk in chunks for entry in chunk.logprobs or ()],
        prompt_logprobs=finish.prompt_logprobs,
        index=chunks[0].index if chunks else 0,
    )
