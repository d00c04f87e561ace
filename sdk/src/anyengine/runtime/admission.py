"""The queue before an engine: bounded, and fair between calls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from anyengine.errors import EngineClosed, Overloaded

__all__ = ["Admission"]


class Admission:
    """Lets ``capacity`` sequences into the engine; the rest waits here, served call by call in turn.

    A call with a thousand prompts so delays a call with one prompt by one place, not by a thousand (fair queueing,
    Nagle 1987, RFC 970).
    """

    def __init__(self, capacity: int, max_queued: int, engine: str) -> None:
        self.capacity = capacity
        self.running = 0
        self.queued = 0
        self.reserved = 0
        self._max_queued = max_queued
        self._engine = engine
        self._flows: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()
        self._seconds = 0.0  # smoothed duration of a sequence, 0 until one has finished
        self._closed = False

    def reserve(self, count: int) -> None:
        """Count in a call of ``count`` sequences, or refuse it. Each is given back, or turned into a place.

        Raises:
            Overloaded: there is no room, with an estimate of when there will be.
        """
        if self._closed:
            raise EngineClosed("the engine was closed; load a new one", engine=self._engine)
        excess = self.running + self.queued + self.reserved + count - self.capacity - self._max_queued
        if excess > 0:
            # Places come free at capacity / seconds a second; without history a second is assumed.
            retry_after = round(max(0.05, (self._seconds or 1.0) * excess / self.capacity), 3)
            raise Overloaded(
                f"{self.running} sequences run, {self.queued + self.reserved} wait, and {count} more would pass the "
                f"limit of {self._max_queued} (scheduling.max_queued_requests); try again in {retry_after} s",
                engine=self._engine,
                retry_after=retry_after,
            )
        self.reserved += count

    def give_back(self) -> None:
        """Give a reservation back unused."""
        self.reserved -= 1

    async def acquire(self, flow: int, *, reserved: bool) -> None:
        """Wait for a place, which the caller must ``release``.

        Args:
            flow: the call that it is for.
            reserved: whether a reservation is turned into it; it is used up whatever happens.
        """
        if reserved:
            self.reserved -= 1
        if self._closed:
            raise EngineClosed("the engine was closed; load a new one", engine=self._engine)
        if self.running < self.capacity and not self.queued:
            self.running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._flows.setdefault(flow, deque()).append(place)
        self.queued += 1
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                if place.exception() is None:
                    self.release(None)  # granted in the same moment: pass it on
            else:
                self._forget(flow, place)
            raise

    def _forget(self, flow: int, place: asyncio.Future[None]) -> None:
        waiting = self._flows.get(flow)
        if waiting is None or place not in waiting:
            return
        waiting.remove(place)
        self.queued -= 1
        if not waiting:
            del self._flows[flow]

    def release(self, seconds: float | None) -> None:
        """Give a place back.

        Args:
            seconds: how long it was held; None if nothing ran on it.
        """
        self.running -= 1
        if seconds is not None:
            self._seconds = seconds if not self._seconds else 0.9 * self._seconds + 0.1 * seconds
        while self._flows and self.running < self.capacity:
            flow, waiting = next(iter(self._flows.items()))
            place = waiting.popleft()
            if waiting:
                self._flows.move_to_end(flow)
            else:
                del self._flows[flow]
            self.queued -= 1
            if not place.done():
                self.running += 1
                place.set_result(None)

    def close(self) -> None:
        """Fail everyone who waits, and whoever comes later."""
        self._closed = True
        for waiting in self._flows.values():
            for place in waiting:
                if not place.done():
                    place.set_exception(
                        EngineClosed("the engine was closed while the request waited", engine=self._engine)
                    )
        self._flows.clear()
        self.queued = 0
