"""The queue before an engine: bounded, fair, and nothing is ever lost from it."""

import asyncio

import pytest
from anyengine.errors import EngineClosed, Overloaded, UnsupportedParameter
from anyengine.runtime.admission import Admission
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule


def counts(admission):
    return admission.running, admission.queued, admission.reserved


async def test_beyond_the_limit_is_overloaded_and_nothing_changes():
    admission = Admission(2, 1, "engine")
    admission.reserve(3)
    with pytest.raises(Overloaded) as caught:
        admission.reserve(1)
    assert (caught.value.retry_after > 0, caught.value.engine) == (True, "engine")
    assert "scheduling.max_queued_requests" in caught.value.message
    assert counts(admission) == (0, 0, 3)
    admission.give_back()
    admission.reserve(1)


async def test_what_can_never_fit_is_no_matter_of_time():
    with pytest.raises(UnsupportedParameter) as caught:
        Admission(2, 1, "engine").reserve(4)
    assert caught.value.field == "n"


async def test_the_estimate_grows_with_the_excess_and_with_how_long_requests_take():
    estimates = []
    for seconds in (1.0, 10.0):
        for excess in (1, 3):
            admission = Admission(1, 4, "engine")
            admission.reserve(1)
            await admission.acquire(0, reserved=True)
            admission.release(seconds)
            admission.reserve(5 - excess + 1)
            with pytest.raises(Overloaded) as caught:
                admission.reserve(excess)
            estimates.append(caught.value.retry_after)
    assert estimates == [1.0, 1.0, 10.0, 10.0]


async def test_calls_are_served_in_turn():
    admission = Admission(1, 100, "engine")
    served = []

    async def one(flow, name):
        await admission.acquire(flow, reserved=True)
        served.append(name)

    admission.reserve(1)
    await admission.acquire(99, reserved=True)
    tasks = []
    for flow, name in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (2, "b2"), (3, "c1")]:
        admission.reserve(1)
        tasks.append(asyncio.create_task(one(flow, name)))
    await asyncio.sleep(0)
    for _ in tasks:
        admission.release(None)
        await asyncio.sleep(0)
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_place_that_is_granted_and_cancelled_at_once_goes_to_the_next():
    admission = Admission(1, 10, "engine")
    admission.reserve(3)
    await admission.acquire(0, reserved=True)
    first = asyncio.create_task(admission.acquire(1, reserved=True))
    second = asyncio.create_task(admission.acquire(2, reserved=True))
    await asyncio.sleep(0)
    admission.release(None)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert counts(admission) == (1, 0, 0)


async def test_closing_fails_who_waits_and_who_comes():
    admission = Admission(1, 10, "engine")
    admission.reserve(3)
    await admission.acquire(0, reserved=True)
    waiting = asyncio.create_task(admission.acquire(1, reserved=True))
    cancelled = asyncio.create_task(admission.acquire(1, reserved=True))
    await asyncio.sleep(0)
    admission.close()
    cancelled.cancel()
    with pytest.raises(EngineClosed):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(EngineClosed):
        admission.reserve(1)
    with pytest.raises(EngineClosed):
        await admission.acquire(2, reserved=False)
    admission.release(None)
    assert counts(admission) == (0, 0, 0)


class Traffic(RuleBasedStateMachine):
    """Calls come, wait, are cancelled and end, in any order."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.admission = Admission(3, 4, "engine")
        self.reserved = 0
        self.standing = 0
        self.waiting = []
        self.running = 0

    def turn(self):
        async def turns():
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        done = [task for task in self.waiting if task.done()]
        self.waiting = [task for task in self.waiting if not task.done()]
        self.running += sum(not task.cancelled() for task in done)

    @rule(count=st.integers(1, 4))
    def reserve(self, count):
        try:
            self.admission.reserve(count)
        except Overloaded:
            assert self.admission.running + self.admission.waiting + count > 7
        else:
            self.reserved += count

    @precondition(lambda self: self.reserved)
    @rule()
    def give_back(self):
        self.reserved -= 1
        self.admission.give_back()

    @precondition(lambda self: self.reserved)
    @rule(flow=st.integers(0, 2))
    def acquire(self, flow):
        self.reserved -= 1
        self.waiting.append(self.loop.create_task(self.admission.acquire(flow, reserved=True)))
        self.turn()

    @rule(flow=st.integers(10, 11))
    def acquire_for_a_list(self, flow):
        self.waiting.append(self.loop.create_task(self.admission.acquire(flow, reserved=False)))
        self.turn()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        data.draw(st.sampled_from(self.waiting)).cancel()
        self.turn()

    @precondition(lambda self: self.running)
    @rule(seconds=st.none() | st.floats(0, 100))
    def release(self, seconds):
        self.running -= 1
        self.admission.release(seconds)
        self.turn()

    @precondition(lambda self: self.running and self.waiting)
    @rule(data=st.data())
    def release_and_cancel_at_once(self, data):
        self.running -= 1
        self.admission.release(None)
        data.draw(st.sampled_from(self.waiting)).cancel()
        self.turn()

    @invariant()
    def the_counts_are_true(self):
        assert (self.admission.running, self.admission.reserved) == (self.running, self.reserved)
        assert sum(len(flow.places) for flow in self.admission._flows.values()) == len(self.waiting)

    @invariant()
    def the_bounds_hold(self):
        assert self.admission.running <= 3
        assert self.admission.waiting <= 7

    @invariant()
    def nobody_waits_while_there_is_a_place(self):
        assert not self.waiting or self.admission.running == 3

    def teardown(self):
        while self.waiting or self.running:
            for task in self.waiting:
                task.cancel()
            while self.running:
                self.running -= 1
                self.admission.release(None)
            self.turn()
        for _ in range(self.reserved):
            self.admission.give_back()
        self.loop.close()
        assert counts(self.admission) == (0, 0, 0)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=30)
