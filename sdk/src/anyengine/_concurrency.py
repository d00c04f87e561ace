"""Two small pieces that asynchronous code of ours shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable

__all__ = ["Deferred", "together"]

T = TypeVar("T")


class Deferred(Generic[T]):
    """An awaitable that begins when it is awaited, and is nothing until then (a coroutine would warn)."""

    def __init__(self, begin: Callable[[], Awaitable[T]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()


async def together(jobs: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run jobs side by side; the first failure cancels the others and is raised as it is, in no group."""
    try:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(job)
    except BaseExceptionGroup as failures:
        error = _first(failures)
        raise error from error.__cause__


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
