"""Several sequences of one prompt in one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from anyengine._concurrency import despite_cancellation
from anyengine.errors import AnyEngineError, RequestTimeout

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
        self._error: Exception | None = None
        self._left = len(choices)
        self._over = False

    def __aiter__(self) -> FanOut:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._pump(choice)) for choice in self._choices]
        while not self._ready:
            if self._error is not None:
                raise await self._failed(self._error)
            if not self._left:
                self._over = True
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        chunk, taken = self._ready.popleft()
        taken.set()
        return chunk

    @property
    def ended(self) -> bool:
        """See :class:`anyengine.runtime.base.ChunkStream`."""
        return self._over and not self._tasks and all(choice.ended for choice in self._choices)

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
            await choice.aclose()

    async def _failed(self, error: Exception) -> Exception:
        try:
            await self.aclose()
        except AnyEngineError as second:
            error.add_note(f"and then: {second.message}")
        if isinstance(error, RequestTimeout):
            error.partial = _joined_partial(self._choices)
        return error

    async def aclose(self) -> None:
        """Abort every sequence that still runs. Idempotent."""
        self._over = True
        self._ready.clear()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await despite_cancellation(_close_all(self._choices, tasks))


async def run_all(choices: Sequence[ChoiceStream]) -> Completion:
    """Run every sequence to its end and gather them in one completion; if one fails, the others are aborted.

    Raises:
        RequestTimeout: with what all of them had by then.
    """
    if len(choices) == 1:
        return await choices[0].run()
    tasks = [asyncio.create_task(choice.run()) for choice in choices]
    error: BaseException | None = None
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in tasks if task.done()]
        error = next((error for error in errors if error is not None), None)
    finally:
        for task in tasks:
            task.cancel()
        await despite_cancellation(_settled(choices, tasks))
    if isinstance(error, RequestTimeout):
        error.partial = _joined_partial(choices)
    if error is not None:
        raise error
    return _joined([task.result() for task in tasks])


async def _close_all(choices: Sequence[ChoiceStream], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for cancelled tasks, each of which closes its own sequence, and close what never began."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for choice in choices:
        await choice.aclose()
    failure = next((result for result in results if isinstance(result, Exception)), None)
    if failure is not None:
        raise failure


async def _settled(choices: Sequence[ChoiceStream], tasks: Sequence[asyncio.Task[Completion]]) -> None:
    """The same where each task's failure is known to the caller."""
    await asyncio.gather(*tasks, return_exceptions=True)
    for choice in choices:
        await choice.aclose()


def _joined(completions: Sequence[Completion]) -> Completion:
    first, *rest = completions
    first.alternatives.extend(rest)
    return first


def _joined_partial(choices: Sequence[ChoiceStream]) -> Completion | None:
    """What all sequences together had when the time was up: they share the deadline."""
    parts = [part for choice in choices if (part := choice.partial()) is not None]
    return _joined(parts) if parts else None
