"""Calls that run beside each other in a check, and end with it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterable
    from typing import Any

__all__ = ["begun", "together"]

T = TypeVar("T")


@asynccontextmanager
async def begun(calls: Iterable[Coroutine[Any, Any, T]]) -> AsyncGenerator[list[asyncio.Task[T]]]:
    """Start calls; what of them still runs at the end, a failed check's too, is cancelled and waited for.

    What a check leaves running would be counted, and computed with, in the next one.

    Args:
        calls: each becomes a task, in this order.
    """
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What calls return that run at once, in their order; the first error ends all of them, and is raised.

    Args:
        calls: what to run.
    """
    async with begun(calls) as tasks:
        return await asyncio.gather(*tasks)
