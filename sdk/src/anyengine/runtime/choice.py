"""One sequence: token deltas of the backend in, chunks of text out. The per-token path."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine.errors import AnyEngineError, PluginError, RequestTimeout
from anyengine.outputs import Chunk, Completion, Finish, Timings, Usage
from anyengine.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from anyengine.backend import TokenDelta, TokenFinish, TokenRequest
    from anyengine.outputs import FinishReason
    from anyengine.request import GenerateRequest
    from anyengine.runtime.admission import Admission
    from anyengine.text.decoding import DecoderTable

__all__ = ["ChoiceStream", "despite_cancellation"]


class ChoiceStream:
    """The chunks of one of a request's ``n`` sequences. Lazy: admission and submission happen on the first read."""

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
    ) -> None:
        self.tokens = tokens
        self.index = index
        self._hooks = hooks
        self._engine = engine
        self._admission = admission
        self._flow = flow
        self._reserved = reserved
        self._called = called
        self._deadline = None if request.timeout is None else called + request.timeout
        self._request = request
        self._text = Detokenizer(
            table,
            stops=tuple(request.stop),
            min_tokens=request.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
            include_stop=request.include_stop,
        )
        self._source: AsyncIterator[TokenDelta] | None = None
        self._submitted: float | None = None
        self._first_token: float | None = None
        self._count = 0
        self._over = False
        # What a timeout hands over; kept only where there can be one.
        self._partial: list[Chunk] | None = None if self._deadline is None else []

    def __aiter__(self) -> ChoiceStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
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
            await self.aclose()
            raise PluginError(f"the stream of {self._engine} ended without a finish", engine=self._engine) from None
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            await self.aclose()
            raise self._mapped(error) from error.__cause__ if isinstance(error, AnyEngineError) else error
        if self._partial is not None:
            self._partial.append(chunk)
        return chunk

    async def run(self) -> Completion:
        """Generate to the end, final result only where nothing has to be watched on the way."""
        try:
            if self._request.stop or self._deadline is not None:
                chunks = [chunk async for chunk in self]
            else:
                await self._admit()
                chunks = [self._chunk(await self._hooks.generate(request=self.tokens), streamed=False)]
                self._over = True
                self._release()
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise self._mapped(error) from error.__cause__ if isinstance(error, AnyEngineError) else error
        finally:
            await self.aclose()
        finish = chunks[-1].finish
        if finish is None:
            raise PluginError(f"the result of {self._engine} has no finish", engine=self._engine)
        return collect(chunks, self.tokens, finish)

    def _mapped(self, error: Exception) -> AnyEngineError:
        """Our own errors as they are; anything else is a plugin that did not map it."""
        if isinstance(error, AnyEngineError):
            error.engine = error.engine or self._engine
            return error
        message = f"{self._engine} raised {type(error).__name__}, which its plugin does not map: {error}"
        return PluginError(message, engine=self._engine)

    async def _admit(self) -> None:
        reserved, self._reserved = self._reserved, False
        await self._admission.acquire(self._flow, reserved=reserved)
        self._submitted = monotonic()

    async def _start(self) -> AsyncIterator[TokenDelta]:
        await self._admit()
        self._source = source = self._hooks.stream(request=self.tokens)
        return source

    async def _next_in_time(self, deadline: float) -> TokenDelta:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - monotonic()):
                return await (self._source or await self._start()).__anext__()
        except TimeoutError as error:
            if monotonic() < deadline:  # the engine's own, not ours
                raise
            partial = collect(self._partial or [], self.tokens, self._finish("abort", None, None))
            message = f"the request ran past its timeout of {self._request.timeout} s, after {self._count} tokens"
            raise RequestTimeout(message, engine=self._engine, partial=partial if self._count else None) from error

    def _chunk(self, delta: TokenDelta, *, streamed: bool = True) -> Chunk:
        """Text and accounting for one delta."""
        token_ids = delta.token_ids
        finish = delta.finish
        if streamed and token_ids and self._first_token is None:
            self._first_token = monotonic()
        by_token = finish is not None and finish.reason == "stop"
        if by_token and not (token_ids and token_ids[-1] in self.tokens.terminators):
            raise PluginError(
                f"{self._engine} ended a sequence with reason 'stop', but its last token "
                f"({token_ids[-1] if token_ids else 'none'}) is none of {sorted(self.tokens.terminators)}",
                engine=self._engine,
            )
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
        self._count += len(token_ids)
        if self._count > self.tokens.max_tokens:
            raise PluginError(
                f"{self._engine} gave {self._count} tokens where max_tokens is {self.tokens.max_tokens}",
                engine=self._engine,
            )
        if finish is None:
            return Chunk(text, token_ids, delta.logprobs, self.index)
        end = self._finish(finish.reason, token_ids[-1] if by_token else None, finish)
        return Chunk(text, token_ids, delta.logprobs, self.index, end)

    def _finish(self, reason: FinishReason, stop_reason: str | int | None, finish: TokenFinish | None) -> Finish:
        now = monotonic()
        return Finish(
            reason,
            stop_reason,
            Usage(len(self.tokens.prompt_token_ids), self._count, None if finish is None else finish.cached_tokens),
            Timings(
                queue=(self._submitted or now) - self._called,
                time_to_first_token=None if self._first_token is None else self._first_token - self._called,
                total=now - self._called,
            ),
            self.tokens.sampling.seed,
            None if finish is None else finish.prompt_logprobs,
        )

    async def _end(self, chunk: Chunk, delta: TokenDelta) -> Chunk:
        """Leave the engine; where a stop string ended the text before the engine did, hear its last word first."""
        source, end = self._source, chunk.finish
        if delta.finish is None and source is not None and end is not None:
            await despite_cancellation(self._hooks.abort(request_id=self.tokens.id))
            async for last in source:
                if last.finish is not None:
                    usage = replace(end.usage, cached_tokens=last.finish.cached_tokens)
                    end = replace(end, usage=usage, prompt_logprobs=last.finish.prompt_logprobs)
            chunk = replace(chunk, finish=end)
        self._source = None
        aclose = getattr(source, "aclose", None)
        if aclose is not None:  # a generator that has given its last item still stands at its last yield
            await aclose()
        self._release()
        return chunk

    def _release(self) -> None:
        submitted, self._submitted = self._submitted, None
        if submitted is not None:
            self._admission.release(monotonic() - submitted)

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
            await despite_cancellation(self._hooks.abort(request_id=self.tokens.id))
            aclose = getattr(source, "aclose", None)
            if aclose is not None:
                await despite_cancellation(aclose())
        finally:
            self._release()


def collect(chunks: list[Chunk], tokens: TokenRequest, finish: Finish) -> Completion:
    """One completion out of a sequence's chunks."""
    return Completion(
        text="".join([chunk.text for chunk in chunks]),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
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


async def despite_cancellation(work: Coroutine[Any, Any, Any]) -> None:
    """Finish ``work`` even if the caller is cancelled meanwhile, then let the cancellation go on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
