"""Waiting until an engine's process has seen all that was sent to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Barrier"]


class Barrier:
    """One question to the engine's process for all who wait at the same time.

    A question that was asked before a caller came proves nothing to it; the next one serves it and all who came
    meanwhile. So hundreds of aborts at once cost two questions.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return once the process has answered a question that was sent after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._question(self._asking))
        # Who stops waiting does not stop the others.
        await asyncio.shield(self._next)

    async def _question(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        await self._ask()
