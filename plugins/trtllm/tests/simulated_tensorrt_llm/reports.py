"""The simulated statistics and events of the engine, which run dry."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IterationResult"]


class IterationResult:
    """Iterations, or events, as they come; at its end when nothing came for so long, and until it is told otherwise."""

    def __init__(self, drain: Callable[[], list[dict[str, Any]]]) -> None:
        self._drain, self._timeout, self._done = drain, 2.0, False
        self._waiting: deque[dict[str, Any]] = deque()

    def set_timeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def mark_undone(self) -> None:
        self._done = False

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._done:
            raise StopAsyncIteration
        self._waiting.extend(self._drain())
        if not self._waiting:
            await asyncio.sleep(self._timeout or 0)
            self._waiting.extend(self._drain())
        if not self._waiting:
            self._done = True
            raise StopAsyncIteration
        return self._waiting.popleft()
