"""Handles: each serves one request at a time, and is taken from a pool as large as the batch."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from lmdeploy.messages import EngineEvent, EventType, RequestMetrics

from .facts import SimulationError

__all__ = ["Handle", "RequestHandlePool", "SessionManager"]


class Handle:
    """What both backends' handles have in common.

    Args:
        engine: the backend's engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._busy = False
        self.pooled = False

    def _claim(self) -> None:
        if self.pooled:
            raise SimulationError("a handle that lies in the pool was used")
        if self._busy:
            raise SimulationError("a handle was used for two requests at once")
        self._busy = True

    def _release(self) -> None:
        self._busy = False

    def _metrics(self, running: Any, *, first: bool, spec_info: dict[str, Any] | None = None) -> Any:
        sequence = running.sequence
        wall = time.time() - time.monotonic()
        events = [EngineEvent(EventType.QUEUED, wall + sequence.accepted_at)]
        if sequence.started_at is not None:
            events.append(EngineEvent(EventType.SCHEDULED, wall + sequence.started_at))
        return RequestMetrics(
            token_timestamp=time.time(),
            engine_events=events if first else [],
            spec_info=spec_info,
            cached_tokens=sequence.cached_tokens or 0,
        )


class RequestHandlePool:
    """As many handles as the batch holds; whoever finds none waits."""

    def __init__(self, engine: Any, size: int) -> None:
        self.size = size
        self.handles = [engine.create_instance() for _ in range(size)]
        self.pool: asyncio.Queue[Any] | None = None

    async def get(self) -> Any:
        """Take a handle."""
        if self.pool is None:
            self.pool = asyncio.Queue()
            for handle in self.handles:
                handle.pooled = True
                self.pool.put_nowait(handle)
        handle = await self.pool.get()
        handle.pooled = False
        return handle

    def put(self, handle: Any) -> None:
        """Give a handle back; one that is given back twice serves two requests from then on."""
        if handle is None or self.pool is None:
            return
        if handle not in self.handles:
            raise SimulationError("a handle of another pool was put back: its engine is gone")
        if handle.pooled:
            raise SimulationError("a handle was put back twice")
        if handle._busy:
            raise SimulationError("a handle was put back while it serves a request")
        handle.pooled = True
        self.pool.put_nowait(handle)

    @property
    def num_dispatched(self) -> int:
        """How many were taken."""
        return 0 if self.pool is None else self.size - self.pool.qsize()

    def clear(self) -> None:
        """Forget them all."""
        self.handles = []
        self.pool = None


class SessionManager:
    """Holds the pool."""

    def __init__(self) -> None:
        self.request_handle_pool: Any = None
        self.loop: Any = None

    def attach_event_loop(self, loop: Any) -> None:
        """Remember the loop that requests come from."""
        self.loop = loop

    def build_request_handle_pool(self, engine: Any, size: int) -> None:
        """Make the pool, anew after a wake-up of TurboMind."""
        self.request_handle_pool = RequestHandlePool(engine, size)

    def clear(self) -> None:
        """Forget sessions, of which there are none here."""
