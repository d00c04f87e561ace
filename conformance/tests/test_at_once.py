"""Calls beside each other end with the check that began them."""

from __future__ import annotations

import asyncio

import pytest
from anyengine_conformance.at_once import begun, together


async def _answer(value: int, after: float = 0.0) -> int:
    await asyncio.sleep(after)
    return value


async def _fail() -> int:
    raise ValueError("of the engine")


async def _for_ever(ended: list[str]) -> int:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)  # cleaning up takes a turn of the loop
        ended.append("ended")
    return 0


def test_answers_come_in_the_order_of_the_calls() -> None:
    assert asyncio.run(together([_answer(1, 0.02), _answer(2)])) == [1, 2]
    assert asyncio.run(together([])) == []


def test_the_first_error_ends_the_others_before_it_is_raised() -> None:
    ended: list[str] = []

    async def check() -> None:
        with pytest.raises(ValueError, match="of the engine"):
            await together([_for_ever(ended), _fail(), _for_ever(ended)])
        assert ended == ["ended"] * 2

    asyncio.run(check())


def test_what_a_failed_check_began_is_over_when_it_ends() -> None:
    ended: list[str] = []

    async def check() -> None:
        with pytest.raises(AssertionError):
            async with begun([_for_ever(ended), _answer(3)]) as (_, quick):
                assert await quick == 4
        assert ended == ["ended"]

    asyncio.run(check())


def test_a_cancelled_check_cancels_them() -> None:
    ended: list[str] = []

    async def check() -> None:
        task = asyncio.create_task(together([_for_ever(ended)]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["ended"]

    asyncio.run(check())
