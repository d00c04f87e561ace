"""A running generation, as a context manager that is iterated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from anyengine.errors import AnyEngineError, Misuse, PluginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from anyengine.outputs import Chunk
    from anyengine.request import GenerateRequest
    from anyengine.runtime import Runtime

__all__ = ["Stream"]


class Stream:
    """Chunks as they come.

    ::

        async with engine.stream("Once upon a time") as stream:
            async for chunk in stream:
                print(chunk.text, end="")

    Guarantees:

    1. Entering checks the request; nothing reaches the engine before the first chunk is asked for.
    2. Each token appears in exactly one chunk, in order; the last chunk of each completion, and only it, has
       ``finish``.
    3. Leaving the context, whatever the reason, aborts what still runs; when the exit returns, the engine holds nothing
       of the request.

    Raises:
        InvalidRequest, UnsupportedParameter, UnsupportedCapability, Overloaded: on entering.
        RequestTimeout, EngineDied, EngineUnresponsive, PluginError: while iterating.
    """

    def __init__(
        self,
        runtime: Runtime,
        request: Callable[[], GenerateRequest],
        hook: Callable[..., AsyncIterator[Chunk]],
        flow: int,
    ) -> None:
        self._runtime = runtime
        self._request = request
        self._hook = hook
        self._flow = flow
        self._inner: Any = None
        self._chunks: AsyncIterator[Chunk] | None = None
        self._entered = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise Misuse("a stream can be entered once; make another with engine.stream(...)")
        self._entered = True
        request = self._request()
        self._inner = await self._runtime.stream(request, self._flow)
        try:
            chunks = self._hook(request=request, inner=self._inner)
            if not hasattr(chunks, "__anext__"):
                kind = type(chunks).__name__
                raise PluginError(f"an extension's stream hook returned a {kind}, not an asynchronous iterator")
        except BaseException:  # an extension's own; __aexit__ will not be called
            await self._inner.aclose()
            raise
        self._chunks = chunks
        return self

    def __aiter__(self) -> AsyncIterator[Chunk]:
        if self._chunks is None:
            raise Misuse("a stream is read inside its context: `async with engine.stream(...) as stream`")
        # The innermost iterator itself: no layer of ours stands between it and the reader.
        return self._chunks

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        chunks, self._chunks = self._chunks, None
        if chunks is self._inner and self._inner.ended:
            return  # the usual end of a stream: what follows would cost it more than its checks did
        with anyio.CancelScope(shield=True):
            try:
                if chunks is not self._inner:
                    aclose = getattr(chunks, "aclose", None)
                    if aclose is not None:
                        await aclose()
            finally:
                await self._close(error)

    async def _close(self, error: BaseException | None) -> None:
        try:
            await self._inner.aclose()
        except AnyEngineError as second:
            if error is None:
                raise
            # What the body raised, a cancellation above all, is not replaced by what went wrong on the way out.
            error.add_note(f"and then: {second.message}")
