"""Several sequences of one prompt in one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from anyengine.errors import RequestTimeout
from anyengine.runtime.choice import despite_cancellation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.outputs import Chunk, Completion
    from anyengine.runtime.choice import ChoiceStream

__all__ = ["FanOut", "run_all"]


class FanOut:
    """Chunks of ``n`` sequences as they come, told apart by ``index``. One task a sequence, none a token.

    A sequence waits with its next chunk until the reader has taken the last one, so that a slow reader costs no
    memory: what comes meanwhile is merged by the backend's own collector.
    """

    def __init__(self, choices: Sequence[ChoiceStream]) -> None:
        self._choices = choices
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: deque[tuple[Chunk, asyncio.Event]] = deque()
        self._arrived = asyncio.Event()
        self._error: BaseException | None = None
        self._left = len(choices)

    def __aiter__(self) -> FanOut:
        return self

    async def __anext__(self) -> Chunk:
        if not self._tasks and self._left:
            self._tasks = [asyncio.create_task(self._pump(choice)) for choice in self._choices]
        while not self._ready:
            if self._error is not None:
                error, self._left, self._error = self._error, 0, None
                await self.aclose()
                raise error
            if not self._left:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        chunk, taken = self._ready.popleft()
        taken.set()
        return chunk

    async def _pump(self, choice: ChoiceStream) -> None:
        taken = asyncio.Event()
        try:
            async for chunk in choice:
                taken.clear()
                self._ready.append((chunk, taken))
                self._arrived.set()
                await taken.wait()
        except Exception as error:  # noqa: BLE001 handed to the reader
            self._error = self._error or error
        finally:
            self._left -= 1
            self._arrived.set()

    async def aclose(self) -> None:
        """Abort every sequence that still runs. Idempotent."""
        self._left = 0
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        await despite_cancellation(self._close_all())

    async def _close_all(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(choice.aclose() for choice in self._choices))


async def run_all(choices: Sequence[ChoiceStream]) -> Completion:
    """Run every sequence to its end and gather them in one completion; if one fails, the others are aborted.

    Raises:
        RequestTimeout: with what all of them had by then.
    """
    if len(choices) == 1:
        return await choices[0].run()
    tasks = [asyncio.create_task(choice.run()) for choice in choices]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        failed = next((error for error in errors if error is not None), None)
        if isinstance(failed, RequestTimeout):
            # The sequences share the deadline: the others end by themselves, now.
            await asyncio.wait(tasks)
            raise _joined_timeout(failed, tasks)
        if failed is not None:
            raise failed
    finally:
        for task in tasks:
            task.cancel()
        await despite_cancellation(_settled(tasks))
    return _joined([task.result() for task in tasks])


async def _settled(tasks: Sequence[asyncio.Task[Completion]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _joined(completions: Sequence[Completion]) -> Completion:
    first, *rest = completions
    first.alternatives.extend(rest)
    return first


def _joined_timeout(error: RequestTimeout, tasks: Sequence[asyncio.Task[Completion]]) -> RequestTimeout:
    parts: list[Completion] = []
    for task in tasks:
        failure = task.exception()
        if failure is None:
            parts.append(task.result())
        elif isinstance(failure, RequestTimeout) and failure.partial is not None:
            parts.append(failure.partial)
    error.partial = _joined(parts) if parts else None
    return error
