"""Exact scores for the subject's model, from an engine that computes in float32."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

from anyengine import AnyEngineError, Engine
from msgspec.structs import replace

from anyengine_conformance.rounding import measured_gap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine import Score
    from anyengine.backend import EnginePlugin

__all__ = ["NEEDS_ORACLE", "NO_ORACLE", "EngineOracle", "Oracle", "OracleFailed"]

#: The subject's model is one that no other engine computes, so nothing is exact.
NO_ORACLE = "none"
#: How the reason of a check begins that was not run for that.
NEEDS_ORACLE = "it needs exact scores"


class OracleFailed(Exception):
    """Exact scores cannot be had; that says nothing about the engine under test."""

    def __init__(self, name: str, error: AnyEngineError) -> None:
        super().__init__(
            f"the oracle {name!r} gives no exact scores for the subject's model: {type(error).__name__}: {error}. Name "
            "another one, as `oracle` in conformance.toml or with --oracle: `transformers` computes most "
            f"architectures; `{NO_ORACLE}` is for a model that only the engine itself has: what needs exact scores is "
            "then not run"
        )


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

        Raises:
            OracleFailed: it cannot.
        """
        ...

    async def gap(self, dtype: str | None, texts: Sequence[Sequence[int]]) -> float | None:
        """The near-tie gap of a data type for this model: see :mod:`anyengine_conformance.rounding`.

        Args:
            dtype: of the engine under test.
            texts: token ids that it is measured on, when it is first asked for.

        Returns:
            Nats; None where the oracle does not compute in that data type, or cannot load a second time.
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
        self._gaps: dict[str, asyncio.Task[float | None]] = {}

    @classmethod
    async def load(cls, name: str, model: str, config: Mapping[str, Any] | None = None) -> EngineOracle:
        """Bring it up.

        Args:
            name: of the engine.
            model: folder of the subject's checkpoint.
            config: further fields of EngineConfig.

        Raises:
            OracleFailed: it does not load.
        """
        stack = AsyncExitStack()
        dtype = {} if name in ("reference", "simulated") else {"dtype": "float32"}
        try:
            engine = await stack.enter_async_context(Engine.load(_plugin(name), model, **dtype, **(config or {})))
        except AnyEngineError as error:
            raise OracleFailed(name, error) from error
        return cls(name, engine, stack)

    async def score(self, token_ids: Sequence[int], *, logprobs: int = 0) -> Score:
        try:
            return await self._engine.score(list(token_ids), logprobs=logprobs)
        except AnyEngineError as error:
            raise OracleFailed(self.name, error) from error

    async def gap(self, dtype: str | None, texts: Sequence[Sequence[int]]) -> float | None:
        if dtype is None or dtype == self._engine.info.dtype or dtype not in self._engine.capabilities.dtypes:
            return None
        if dtype not in self._gaps:
            self._gaps[dtype] = asyncio.create_task(self._measure(dtype, texts))
        # It goes on where the check that needs it has no time left: the next one then finds it done.
        return await asyncio.shield(self._gaps[dtype])

    async def _measure(self, dtype: str, texts: Sequence[Sequence[int]]) -> float | None:
        config = self._engine.config.model_copy(update={"dtype": dtype})
        try:
            async with Engine.load(_plugin(self.name), config=config) as engine, AsyncExitStack() as nothing:
                return await measured_gap(self, EngineOracle(self.name, engine, nothing), texts)
        except (AnyEngineError, OracleFailed):
            return None  # what it judges by then says so

    async def close(self) -> None:
        for task in self._gaps.values():
            task.cancel()
        await asyncio.gather(*self._gaps.values(), return_exceptions=True)
        await self._stack.aclose()


def _plugin(name: str) -> str | EnginePlugin:
    """The selftest's healthy engine is exact, and installed nowhere."""
    if name != "simulated":
        return name
    from anyengine_conformance.simulated import SimulatedPlugin  # noqa: PLC0415 only the selftest needs it

    plugin = SimulatedPlugin()
    plugin.capabilities = replace(plugin.capabilities, max_logprobs=1000)
    return plugin
