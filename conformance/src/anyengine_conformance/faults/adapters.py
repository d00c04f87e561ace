"""Engines that take one request's adapter for another's."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, fault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyengine import EngineConfig
    from anyengine.backend import Backend, TokenDelta, TokenRequest


@fault("adapters.side-by-side", "a request without adapter computes with one that runs beside it", base="adapted")
class AdapterOfTheBatch(BrokenBackend):
    def __init__(self, inner: Backend, config: EngineConfig) -> None:
        super().__init__(inner, config)
        self.running: Counter[str] = Counter()

    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        name = request.lora or next((name for name, count in self.running.items() if count), None)
        if request.lora:
            self.running[request.lora] += 1
        try:
            async for delta in self.inner.stream(replace(request, lora=name)):
                yield delta
        finally:
            if request.lora:
                self.running[request.lora] -= 1


@fault("adapters.side-by-side", "adapters are never applied", base="adapted")
class NoAdapter(BrokenBackend):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        async for delta in self.inner.stream(replace(request, lora=None)):
            yield delta


@fault("adapters.side-by-side", "every request gets the adapter that was loaded first", base="adapted")
class FirstAdapter(BrokenBackend):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        name = self.inner.info.loras[0] if request.lora else None
        async for delta in self.inner.stream(replace(request, lora=name)):
            yield delta
