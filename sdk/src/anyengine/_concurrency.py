"""Small pieces that asynchronous code of ours shares."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable

__all__ = ["Deferred", "Once", "despite_cancellation", "together"]

T = TypeVar("T")


class Deferred(Generic[T]):
    """An awaitable that begins when it is awaited, and is nothing until then (a coroutine would warn)."""

    def __init__(self, begin: Callable[[], Awaitable[T]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()


class Once:
    """Work that is done once, and to its end, whoever of those that wait for it is cancelled.

    The first who calls it gets what it raises; who comes later waits until it has ended.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None

    async def __call__(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._work())
            await asyncio.shield(self._task)
        else:
            await asyncio.wait([self._task])


async def together(jobs: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run jobs side by side; the first failure cancels the others and is raised as it is, in no group."""
    try:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(job)
    except BaseExceptionGroup as failures:
        error = _first(failures)
    else:
        return
    raise error  # out here, so that the group is not its context


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first


async def despite_cancellation(work: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Finish ``work`` even if the caller is cancelled meanwhile, then let the cancellation go on.

    Args:
        work: to do; a task may be waited for by several callers.

    Raises:
        Exception: what it raises. Where the caller was cancelled meanwhile, that is a note of the cancellation.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    # The scope keeps anyio from cancelling again and again; asyncio's own cancellation comes once, and is kept.
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is None:
        task.result()
        return
    failure = None if task.cancelled() else task.exception()
    if failure is not None:
        cancelled.add_note(f"and then: {failure}")
    raise cancelled
