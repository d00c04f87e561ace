"""Exact scores for the subject's model, from an engine that computes in float32."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

from anyengine import Engine
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine import Score
    from anyengine.backend import EnginePlugin

__all__ = ["EngineOracle", "Oracle"]


class Oracle(Protocol):
    """What the numbers of an engine are compared with."""

    @property
    def name(self) -> str:
        """For the report."""
        ...

    async def score(self, token_ids: Sequence[int], *, logprobs: int = 0) -> Score:
        """Log-probability of each token given those before it, in nats, in float32.

        Args:
            token_ids: length n, at least 2.
            logprobs: alternatives a position.
        """
        ...

    async def close(self) -> None:
        """Release it."""
        ...


class EngineOracle:
    """Any engine that declares ``score``: the reference engine for Llama-type models, ``transformers`` for others."""

    def __init__(self, name: str, engine: Engine, stack: AsyncExitStack) -> None:
        self.name = name
        self._engine = engine
        self._stack = stack

    @classmethod
    async def load(cls, name: str, model: str, config: Mapping[str, Any] | None = None) -> EngineOracle:
        """Bring it up.

        Args:
            name: of the engine.
            model: folder of the subject's checkpoint.
            config: further fields of EngineConfig.
        """
        stack = AsyncExitStack()
        dtype = {} if name in ("reference", "simulated") else {"dtype": "float32"}
        engine = await stack.enter_async_context(Engine.load(_plugin(name), model, **dtype, **(config or {})))
        return cls(name, engine, stack)

    async def score(self, token_ids: Sequence[int], *, logprobs: int = 0) -> Score:
        return await self._engine.score(list(token_ids), logprobs=logprobs)

    async def close(self) -> None:
        await self._stack.aclose()


def _plugin(name: str) -> str | EnginePlugin:
    """The selftest's healthy engine is exact, and installed nowhere."""
    if name != "simulated":
        return name
    from anyengine_conformance.simulated import SimulatedPlugin  # noqa: PLC0415 only the selftest needs it

    plugin = SimulatedPlugin()
    plugin.capabilities = replace(plugin.capabilities, max_logprobs=1000)
    return plugin
