"""One sequence in the engine: let in, read, and ended, however it ends."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine._concurrency import despite_cancellation
from anyengine.backend import TokenDelta, TokenFinish
from anyengine.errors import AnyEngineError, EngineUnresponsive, RequestTimeout
from anyengine.runtime.contract import (
    broken,
    cancelled_itself,
    cause,
    check_cached_tokens,
    check_prompt_logprobs,
    check_types,
    mapped,
    wrong_delta,
)
from anyengine.runtime.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyengine.backend import TokenRequest
    from anyengine.outputs import Chunk, Completion
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
        self._transcript = Transcript(
            request=request, tokens=tokens, index=index, engine=engine, table=table, called=called
        )
        self._source: AsyncIterator[TokenDelta] | None = None
        self._submitted: float | None = None  # None again once the place is given back
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
            chunk = self._transcript.chunk(delta)
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
                chunks = [self._transcript.chunk(delta, streamed=False)]
                self._over = True
                self._release()
            return self._transcript.completion(chunks)
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise await self._failed(error, delta) from cause(error)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and cancelled_itself():
                raise await self._failed(broken(self._engine, "cancelled its own request")) from None
            await self.close_after(error)
            raise

    def partial(self) -> Completion | None:
        """What there is when the time is up; None if no token has come. Nothing more can be read afterwards."""
        chunks = self._partial
        if not chunks or not self._transcript.count:
            return None
        if chunks[-1].finish is None:
            chunks.append(self._transcript.cut_off())
        return self._transcript.completion(chunks)

    def _timed_out(self) -> RequestTimeout:
        after = f"after {self._transcript.count} tokens"
        message = f"the request ran past its timeout of {self._request.timeout} s, {after}"
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
        self._transcript.queue = self._submitted - self._called

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

    async def _end(self, chunk: Chunk, delta: TokenDelta) -> Chunk:
        """Leave the engine; where a stop string ended the text before the engine did, hear its last word first."""
        source, end = self._source, chunk.finish
        if delta.finish is None and source is not None and end is not None:
            await despite_cancellation(self._abort())
            heard = await self._last_word(source, chunk)
            check_types(self._engine, heard, TokenFinish | None)
            check_prompt_logprobs(self._engine, self.tokens, heard)
            check_cached_tokens(self._engine, self.tokens, heard)
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
