"""The mailbox between an engine's step and the reader of one stream."""

import asyncio

import pytest
from anyengine.backend import DeltaCollector, TokenDelta, TokenFinish
from anyengine.outputs import TokenLogprobs

STOP = TokenFinish("stop")


def entry(token):
    return TokenLogprobs(token, -0.5, {token: -0.5})


async def test_what_is_not_fetched_is_merged():
    collector = DeltaCollector()
    for token in (1, 2):
        collector.put(TokenDelta([token], [entry(token)]))
    collector.put(TokenDelta([3], [entry(3)], STOP))
    assert [delta async for delta in collector] == [TokenDelta([1, 2, 3], [entry(1), entry(2), entry(3)], STOP)]


async def test_a_waiting_reader_gets_each_delta():
    collector = DeltaCollector()
    read = asyncio.create_task(anext(collector))
    await asyncio.sleep(0)
    collector.put(TokenDelta([1]))
    assert await read == TokenDelta([1])


async def test_what_comes_after_the_finish_is_dropped():
    collector = DeltaCollector()
    collector.put(TokenDelta([1], None, STOP))
    collector.put(TokenDelta([2]))
    collector.put(TokenDelta([], None, TokenFinish("abort")))
    assert [delta async for delta in collector] == [TokenDelta([1], None, STOP)]
    collector.put(TokenDelta([3]))
    assert [delta async for delta in collector] == []


async def test_a_failure_comes_after_what_was_put_and_then_the_end():
    collector = DeltaCollector()
    collector.put(TokenDelta([1]))
    collector.fail(ValueError("gone"))
    assert await anext(collector) == TokenDelta([1])
    with pytest.raises(ValueError, match="gone"):
        await anext(collector)
    assert [delta async for delta in collector] == []


async def test_a_cancelled_read_loses_nothing():
    collector = DeltaCollector()
    read = asyncio.create_task(anext(collector))
    await asyncio.sleep(0)
    collector.put(TokenDelta([1]))
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    assert await anext(collector) == TokenDelta([1])
