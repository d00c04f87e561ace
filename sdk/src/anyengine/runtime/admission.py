"""The queue before an engine: bounded, and fair between calls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from anyengine.errors import EngineClosed, Overloaded, UnsupportedParameter

__all__ = ["Admission"]


class _Flow:
    """The sequences of one call that wait for a place."""

    __slots__ = ("counted", "places")

    def __init__(self, *, counted: bool) -> None:
        self.counted = counted
        self.places: deque[asyncio.Future[None]] = deque()


class Admission:
    """Lets ``capacity`` sequences into the engine; the rest waits here, served call by call in turn.

    A call with a thousand prompts so delays a call with one prompt by one place, not by a thousand (fair queueing,
    Nagle 1987, RFC 970).

    A call is let in by a reservation. That of a single prompt turns into places, one for each of its sequences; that of
    a list of prompts stands until the whole list is done, and its prompts follow on places that come free.

    Attributes:
        capacity: sequences that run at once.
        running: sequences that have a place.
        queued: sequences with a reservation of their own that wait for a place.
        reserved: reservations that have not been turned into a place or a wait for one.
    """

    def __init__(self, capacity: int, max_queued: int, engine: str) -> None:
        self.capacity = capacity
        self.running = 0
        self.queued = 0
        self.reserved = 0
        self._max_queued = max_queued
        self._engine = engine
        self._flows: OrderedDict[int, _Flow] = OrderedDict()
        self._seconds = 0.0  # smoothed duration of a sequence, 0 until one has finished
        self._closed = False

    @property
    def waiting(self) -> int:
        """What counts against the limit; above it only while places are about to be taken."""
        return self.queued + self.reserved

    def reserve(self, count: int) -> None:
        """Let a call of ``count`` sequences in, or refuse it. Each is given back, or turned into a place.

        Raises:
            Overloaded: there is no room, with an estimate of when there will be.
            UnsupportedParameter: there will never be so much room.
        """
        self._check_open()
        room = self.capacity + self._max_queued
        if count > room:
            raise UnsupportedParameter(
                f"n: {count} sequences at once are more than the {room} that {self._engine} and the queue before it "
                "hold; ask for fewer, or raise scheduling.max_queued_requests",
                engine=self._engine,
                field="n",
            )
        excess = self.running + self.waiting + count - room
        if excess > 0:
            # Places come free at capacity / seconds a second; without history a second is assumed.
            retry_after = round(max(0.05, (self._seconds or 1.0) * excess / self.capacity), 3)
            raise Overloaded(
                f"{self.running} sequences run, {self.waiting} wait, and {count} more would pass the limit of "
                f"{self._max_queued} (scheduling.max_queued_requests); try again in {retry_after} s",
                engine=self._engine,
                retry_after=retry_after,
            )
        self.reserved += count

    def give_back(self, count: int = 1) -> None:
        """Give reservations back unused."""
        self.reserved -= count

    async def acquire(self, flow: int, *, reserved: bool) -> None:
        """Wait for a place, which the caller must ``release``.

        Args:
            flow: the call that it is for.
            reserved: whether a reservation is turned into it; it is used up whatever happens. Without, the call's own
                reservation stands for all of them.
        """
        if reserved:
            self.reserved -= 1
        self._check_open()
        if self.running < self.capacity and not self._flows:
            self.running += 1
            return
        waiting = self._flows.get(flow)
        if waiting is None:
            waiting = self._flows[flow] = _Flow(counted=reserved)
        place = asyncio.get_running_loop().create_future()
        waiting.places.append(place)
        self.queued += waiting.counted
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled() or not place.done():
                self._forget(flow, place)
            elif place.exception() is None:
                self.release(None)  # granted in the same moment: pass it on
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed(f"the engine {self._engine} was closed; load a new one", engine=self._engine)

    def _forget(self, flow: int, place: asyncio.Future[None]) -> None:
        waiting = self._flows.get(flow)
        if waiting is None or place not in waiting.places:
            return
        waiting.places.remove(place)
        self.queued -= waiting.counted
        if not waiting.places:
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
            place = waiting.places.popleft()
            if waiting.places:
                self._flows.move_to_end(flow)
            else:
                del self._flows[flow]
            self.queued -= waiting.counted
            if not place.done():
                self.running += 1
                place.set_result(None)

    def close(self) -> None:
        """Fail everyone who waits, and whoever comes later."""
        self._closed = True
        for waiting in self._flows.values():
            for place in waiting.places:
                if not place.done():
                    place.set_exception(
                        EngineClosed("the engine was closed while the request waited", engine=self._engine)
                    )
        self._flows.clear()
        self.queued = 0
