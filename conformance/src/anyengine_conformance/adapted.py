"""The healthy engine of the faults in adapters: the reference engine, one of it for each adapter.

Each has an adapter merged into its weights, so what a request computes is right by construction.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.backend import Backend, EngineDescription, EnginePlugin
from anyengine_reference import plugin as reference
from msgspec.structs import replace

from anyengine_conformance.adapters import merge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from anyengine import EngineConfig, EngineStats, Score
    from anyengine.backend import BackendInfo, TokenDelta, TokenRequest
    from anyengine.hub import ModelFiles

__all__ = ["AdaptedPlugin"]


class AdaptedPlugin(EnginePlugin):
    """The plugin; made where it is needed, not installed."""

    def describe(self) -> EngineDescription:
        known = reference.describe()
        has = known.capabilities
        return replace(
            known,
            name="adapted",
            capabilities=replace(
                has,
                config=has.config | {"lora"},
                request=has.request | {"lora"},
            ),
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        plain = config.model_copy(update={"lora": None})
        async with AsyncExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="anyengine-adapted-"))
            stack.callback(shutil.rmtree, folder)
            models: dict[str | None, ModelFiles] = {None: model}
            for name, adapter in model.loras.items():
                merge(model.path, adapter, folder / name)
                models[name] = replace(model, path=folder / name)
            backends: dict[str | None, Backend] = {}
            for name, files in models.items():
                backends[name] = await reference.load(plain, replace(files, loras={}))
                stack.push_async_callback(backends[name].close)
            return Adapted(self.describe(), backends, stack.pop_all())
        raise AssertionError("an exit stack swallows nothing")


class Adapted(Backend):
    """Hands each request to the engine of its adapter."""

    def __init__(self, known: EngineDescription, backends: dict[str | None, Backend], stack: AsyncExitStack) -> None:
        self._backends = backends
        self._stack = stack
        loras = tuple(name for name in backends if name is not None)
        self._info = replace(backends[None].info, capabilities=known.capabilities, loras=loras)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self._backends[request.lora].stream(request)

    async def abort(self, request_id: str) -> None:
        for backend in self._backends.values():
            await backend.abort(request_id)

    async def stats(self) -> EngineStats:
        return await self._backends[None].stats()

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        return await self._backends[None].score(token_ids, logprobs)

    async def close(self) -> None:
        await self._stack.aclose()
