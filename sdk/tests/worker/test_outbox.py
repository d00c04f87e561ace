"""What cannot be encoded ends its own request, and no other message is lost."""

import asyncio

import numpy as np
import pytest
from anyengine import PluginError
from anyengine.outputs import Chunk, TokenLogprobs
from anyengine.worker.mailbox import Mailbox
from anyengine.worker.outbox import Outbox
from anyengine.worker.protocol import Cancelled, ChunkItem, Chunks, End, Error, FrameReader

LOGPROBS = [TokenLogprobs(7, np.float32(-0.5), {})]


class Sent:
    """A transport that keeps what is written, and how often."""

    def __init__(self):
        self.writes = []

    def write(self, data):
        self.writes.append(data)

    def messages(self):
        return list(FrameReader(FrameReader.ANSWERS).feed(b"".join(self.writes)))


@pytest.fixture
async def box():
    """An outbox, what it has written, and what it has said to have failed."""
    sent, failed = Sent(), []
    return Outbox(asyncio.get_running_loop(), sent, failed.append), sent, failed


def summary(message):
    if isinstance(message, Chunks):
        return "chunks", [(item.id, item.index, item.text) for item in message.items]
    return type(message).__name__.lower(), message.id


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (Chunk("b", list(np.array([7])), None, 1), "token_ids.0"),
        (Chunk("b", [7], LOGPROBS, 1), "logprobs.0.logprob"),
        (Chunk("\udcff", [7], None, 1), "text"),
    ],
)
async def test_one_bad_chunk_ends_its_stream_and_no_other(box, bad, place):
    outbox, sent, failed = box
    outbox.put(1, Chunk("a", [1]))
    outbox.put(2, Chunk("good", [1]))  # of the same stream as the bad one
    outbox.put(2, bad)
    outbox.put(3, Chunk("c", [3]))
    for end in (End(2), End(3), Cancelled(4)):
        outbox.send(end)
    await asyncio.sleep(0)
    messages = sent.messages()
    assert list(map(summary, messages)) == [
        ("chunks", [(1, 0, "a")]),
        ("chunks", [(2, 0, "good")]),
        ("error", 2),
        ("chunks", [(3, 0, "c")]),
        ("end", 3),
        ("cancelled", 4),
    ]
    error = messages[2].error
    assert error["type"] == "PluginError"
    assert error["message"].startswith(f"{place}: ")
    assert failed == [2]


async def test_what_can_be_encoded_goes_in_one_frame(box):
    outbox, sent, failed = box
    outbox.put(1, Chunk("a", [1]))
    outbox.send(End(1))
    outbox.send(Error(2, {}))
    await asyncio.sleep(0)
    assert len(sent.writes) == 1
    assert [summary(message)[0] for message in sent.messages()] == ["chunks", "end", "error"]
    assert failed == []


async def test_what_waits_is_one_chunk_and_grows_in_place(box):
    outbox, sent, _ = box
    mailbox, first = Mailbox(asyncio.get_running_loop()), [1]
    outbox.pause()
    kept = []
    for number in range(1, 5):
        logprobs = [TokenLogprobs(number, -0.5, {})]
        outbox.put(1, Chunk(str(number), first if number == 1 else [number], logprobs))
        mailbox.put(ChunkItem(1, 0, str(number), [number], logprobs))
        kept.append((outbox._chunks[1, 0].token_ids, mailbox._chunks[0].token_ids))
    assert all(ours is kept[-1][0] and theirs is kept[-1][1] for ours, theirs in kept[1:])
    assert first == [1]  # who gave it may hold it still
    outbox.resume()
    await asyncio.sleep(0)
    (chunks,) = sent.messages()
    for merged in (*chunks.items, await mailbox.take()):
        assert (merged.text, merged.token_ids, merged.index) == ("1234", [1, 2, 3, 4], 0)
        assert [entry.token_id for entry in merged.logprobs] == [1, 2, 3, 4]


async def test_a_stream_that_the_worker_has_ended_is_not_over_while_something_of_it_lies_here():
    mailbox = Mailbox(asyncio.get_running_loop())
    mailbox.put(ChunkItem(1, 0, "a", [1], None))
    mailbox.end()
    assert (mailbox.ended.done(), mailbox.drained) == (True, False)
    await mailbox.take()
    assert mailbox.drained


async def test_an_engine_that_gives_numbers_of_numpy_harms_the_request_only(worker):
    async with worker("foreign") as engine:
        good = asyncio.create_task(engine.generate("hi", max_tokens=4))
        refused = r"gave np\.int64\(71\) as token_ids\[0\]: expected int, got int64"
        with pytest.raises(PluginError, match=refused):  # noqa: PT012 what happens inside is the subject
            async with engine.stream("hi", max_tokens=4000) as stream:
                async for _ in stream:
                    pass
        with pytest.raises(PluginError):
            await engine.generate("hi", max_tokens=5)
        assert (await good).token_ids == [71, 68, 75, 75]
        while (await engine.stats()).running:  # noqa: ASYNC110 another process
            await asyncio.sleep(0.01)
