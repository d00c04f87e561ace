"""Broken streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine import EngineClosed
from anyengine.backend import TokenDelta
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, BrokenStream, fault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
    from typing import Self

    from anyengine import Chunk
    from anyengine.backend import TokenRequest


@fault("streaming.terminal-is-last", "an empty chunk follows the one with `finish`")
class ChunkAfterFinish(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        last: Chunk | None = None
        async for chunk in chunks:
            last = chunk
            yield chunk
        if last is not None:
            yield replace(last, text="", token_ids=[], logprobs=None, finish=None)


class ChangedChunks(BrokenEngine):
    """Changes chunks one by one."""

    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        """What becomes of one."""
        return chunk

    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        number = 0
        async for chunk in chunks:
            yield self.chunk(chunk, number)
            number += 1


@fault("streaming.ends-with-usage", "the terminating token is not counted")
class UsageOneShort(ChangedChunks):
    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        if chunk.finish is None:
            return chunk
        usage = replace(chunk.finish.usage, completion_tokens=chunk.finish.usage.completion_tokens - 1)
        return replace(chunk, finish=replace(chunk.finish, usage=usage))


@fault("streaming.texts-join", "text of the first chunk is lost")
class FirstTextLost(ChangedChunks):
    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        return chunk if number else replace(chunk, text="")


@fault("streaming.tokens-only-once", "each chunk has all tokens so far")
class CumulativeTokens(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        total: list[int] = []
        async for chunk in chunks:
            total += chunk.token_ids
            yield replace(chunk, token_ids=list(total))


@fault("streaming.tokens-only-once", "each delta of the backend has all tokens so far")
class CumulativeDeltas(BrokenBackend):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        total: list[int] = []
        async for delta in self.inner.stream(request):
            if request.max_tokens >= 500:  # noqa: PLR2004 an engine is closed under them, nobody knows how far they came
                yield delta
                continue
            # Token by token: an engine that runs ahead of its reader would have all in its first delta.
            for token in delta.token_ids[:-1]:
                total.append(token)
                yield TokenDelta(token_ids=list(total))
            total += delta.token_ids[-1:]
            yield replace(delta, token_ids=list(total))


@fault("streaming.arrives-while-it-is-made", "everything comes at the end, in one chunk")
class AllAtOnce(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        whole: dict[int, Chunk] = {}
        async for chunk in chunks:
            old = whole.get(chunk.index)
            entries = None if chunk.logprobs is None else [*((old and old.logprobs) or []), *chunk.logprobs]
            whole[chunk.index] = replace(
                chunk,
                text=(old.text if old else "") + chunk.text,
                token_ids=[*(old.token_ids if old else []), *chunk.token_ids],
                logprobs=entries,
            )
        for chunk in whole.values():
            yield chunk


@fault("streaming.first-token-is-timed", "the time to the first token is later than the end")
class FirstTokenAfterEnd(ChangedChunks):
    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        if chunk.finish is None:
            return chunk
        timings = replace(chunk.finish.timings, time_to_first_token=chunk.finish.timings.total + 1)
        return replace(chunk, finish=replace(chunk.finish, timings=timings))


@fault("streaming.choices-have-indices", "every chunk has index 0")
class NoIndices(ChangedChunks):
    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        return replace(chunk, index=0)


@fault("streaming.logprobs-one-a-token", "the terminating token has no log-probability")
class LogprobsOneShort(ChangedChunks):
    def chunk(self, chunk: Chunk, number: int) -> Chunk:
        return replace(chunk, logprobs=chunk.logprobs[:-1]) if chunk.finish and chunk.logprobs else chunk


class _LateRefusal(BrokenStream):
    async def __aenter__(self) -> Self:
        self._stream = self._inner
        self._read = self._entering()
        return self

    async def _entering(self) -> AsyncGenerator[Chunk]:
        stream = await self._inner.__aenter__()
        self._entered = True
        async for chunk in stream:
            yield chunk

    async def __aexit__(self, *error: object) -> None:
        if getattr(self, "_entered", False):
            await super().__aexit__(*error)


@fault("streaming.refused-on-entering", "a request is checked on the first read")
class LateRefusal(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        return _LateRefusal(self.inner.stream(prompt, **options), lambda chunks: self.chunks(chunks, options))


class _Eager(BrokenStream):
    async def __aenter__(self) -> Self:
        stream = await self._inner.__aenter__()
        iterator = aiter(stream)
        self._read = self._from(asyncio.ensure_future(anext(iterator)), iterator)
        return self

    async def _from(self, first: asyncio.Future[Chunk], rest: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk]:
        yield await first
        async for chunk in rest:
            yield chunk


@fault("streaming.lazy-until-read", "entering a stream starts the request")
class EagerStream(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        return _Eager(self.inner.stream(prompt, **options), lambda chunks: self.chunks(chunks, options))


@fault("streaming.slow-reader-loses-nothing", "what comes while nobody reads is dropped")
class SlowReaderLoses(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async for chunk in chunks:
            late, asked = loop.time() - asked > 0.1, loop.time()  # noqa: PLR2004 a pause
            yield replace(chunk, token_ids=chunk.token_ids[1:]) if late else chunk


@fault("streaming.streams-do-not-mix", "concurrent streams get the usage of the prompt that came first")
class MixedStreams(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("max_tokens") != 6 or options.get("n"):  # noqa: PLR2004 the check's own number: a narrow fault
            return prompt, options
        self.first = getattr(self, "first", prompt)
        return self.first, options


@fault("streaming.entered-only-once", "a stream can be entered twice")
class EnteredTwice(BrokenEngine):
    def stream(self, prompt: Any = None, **options: Any) -> Any:
        engine = self

        class Again:
            async def __aenter__(self) -> Any:
                self.stream: Any = engine.inner.stream(prompt, **options)
                return await self.stream.__aenter__()

            async def __aexit__(self, *error: object) -> None:
                await self.stream.__aexit__(*error)

        return Again()


@fault("streaming.no-torn-characters", "each chunk is decoded on its own")
class TornCharacters(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        async for chunk in chunks:
            reason = None if chunk.finish is None else chunk.finish.reason
            ids = chunk.token_ids[:-1] if reason == "stop" else chunk.token_ids
            try:
                yield replace(chunk, text=await self.inner.detokenize(ids))
            except EngineClosed:  # what was on its way when the engine was closed nobody decodes any more
                yield chunk
