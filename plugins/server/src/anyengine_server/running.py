"""The requests that a server works on for us, each read by a task of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from anyengine.backend import DeltaCollector, TokenDelta, TokenFinish

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["RunningRequests"]


class RunningRequests:
    """Starts, aborts and ends requests.

    Each is read from the network as it comes, whatever the pace of its reader: what is not fetched yet is merged, so a
    slow reader costs its tokens and no more. Made on the event loop that it serves.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[asyncio.Task[None], DeltaCollector]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def stream(self, request_id: str, source: AsyncGenerator[TokenDelta]) -> DeltaCollector:
        """Begin a request.

        Args:
            request_id: what :meth:`abort` names.
            source: its deltas; closed in every case, which has to close the connection.
        """
        collector = DeltaCollector()
        if self._closed:
            collector.put(_aborted())
            return collector
        task = asyncio.create_task(self._read(request_id, source, collector), name=f"anyengine-server {request_id}")
        self._tasks[request_id] = (task, collector)
        return collector

    async def _read(self, request_id: str, source: AsyncGenerator[TokenDelta], collector: DeltaCollector) -> None:
        try:
            try:
                async for delta in source:
                    collector.put(delta)
            finally:
                await source.aclose()
        except Exception as error:  # noqa: BLE001 it is the reader's to see
            collector.fail(error)
        finally:
            self._tasks.pop(request_id, None)

    async def abort(self, request_id: str) -> bool:
        """End a request: when this returns its connection is closed. Whether there was one of that name."""
        entry = self._tasks.get(request_id)
        if entry is None:
            return False
        await self._end([entry])
        return True

    async def close(self) -> None:
        """End all, and begin none any more. Idempotent."""
        self._closed = True
        await self._end(list(self._tasks.values()))
        self._tasks.clear()

    async def _end(self, entries: list[tuple[asyncio.Task[None], DeltaCollector]]) -> None:
        for task, _ in entries:
            task.cancel()
        if entries:
            await asyncio.wait([task for task, _ in entries])
        for _, collector in entries:
            collector.put(_aborted())  # dropped where the end came first


def _aborted() -> TokenDelta:
    return TokenDelta([], None, TokenFinish("abort"))
