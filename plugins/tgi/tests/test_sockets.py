"""A *simulated* TGI over real sockets that does what networks and servers do: typed errors, nothing left behind."""

from __future__ import annotations

import asyncio
import resource
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from anyengine import Engine, SamplingParams
from anyengine.errors import EngineDied, EngineUnresponsive, Overloaded
from anyengine_server import MalformedAnswer
from anyengine_tgi import plugin

GREEDY = SamplingParams(temperature=0)


def sockets() -> int:
    """Sockets that this process has open."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            found += str(file.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


@pytest.fixture
def attached(serve: Any, storyteller: Path):
    """An engine on a server; afterwards no connection stands, and the server holds no request."""

    @asynccontextmanager
    async def start(native: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **limits: Any):
        before = sockets()
        async with serve(**limits) as (server, tgi):
            options = {"url": server.url, **(native or {})}
            async with Engine.load(plugin, str(storyteller), native=options, **(config or {})) as engine:
                yield engine, tgi, server
            await server.idle()
            assert tgi.active == 0
        assert sockets() <= before

    return start


async def read(engine: Engine, prompt: str, tokens: int) -> list[int]:
    found: list[int] = []
    async with engine.stream(prompt, sampling=GREEDY, max_tokens=tokens) as stream:
        async for chunk in stream:
            found += chunk.token_ids
    return found


async def test_256_streams_at_once(attached: Any):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        # The server is in this process too: each stream has two ends here, and on a busy machine it is long until all
        # connections stand.
        async with attached({"connect_timeout": 100.0}, max_concurrent_requests=512) as (engine, tgi, _server):
            together = asyncio.Barrier(256)

            async def wait_for_all(exchange: Any, number: int) -> None:
                if number == 0:
                    await together.wait()

            tgi.before_event = wait_for_all
            prompts = [f"Story number {number}" for number in range(256)]
            try:
                answers = await asyncio.gather(*(read(engine, prompt, 6) for prompt in prompts))
            finally:  # where one fails, no other waits for it
                tgi.before_event = None
                await together.abort()
            alone = [await read(engine, prompt, 6) for prompt in prompts[:3]]
            assert answers[:3] == alone
            assert all(1 <= len(answer) <= 6 for answer in answers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_slow_reader_holds_up_nobody_and_costs_little(attached: Any):
    async with attached() as (engine, tgi, _server):

        async def pad(exchange: Any, number: int) -> None:
            await exchange.write(b":" + b"x" * 2**17 + b"\n\n")

        tgi.before_event = pad  # 128 KiB a token
        async with engine.stream("Once upon a time", sampling=SamplingParams(seed=1), max_tokens=900) as slow:
            chunks = aiter(slow)
            first = await anext(chunks)
            tracemalloc.start()
            assert await read(engine, "A quick one", 10)
            while tgi.active:  # all of it comes, though nobody reads  # noqa: ASYNC110 another process, or the network, has to move
                await asyncio.sleep(0.01)
            grown = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            rest = [chunk async for chunk in chunks]
        total = len(first.token_ids) + sum(len(chunk.token_ids) for chunk in rest)
        finish = rest[-1].finish
        assert finish is not None
        assert total == finish.usage.completion_tokens
        # All that was sent is not what was kept.
        assert (total - len(first.token_ids)) * 2**17 > 16 * 2**20
        assert grown < 4 * 2**20
        # What nobody fetched was merged, not queued.
        assert len(rest) < total / 4


async def test_a_server_killed_in_the_middle_ends_every_stream(attached: Any):
    async with attached() as (engine, tgi, _server):
        begun = 0

        async def watch(exchange: Any, number: int) -> None:
            nonlocal begun
            begun += number == 3
            if begun >= 8:
                exchange.break_off()

        tgi.before_event = watch
        results = await asyncio.gather(
            *(read(engine, f"Story {number}", 500) for number in range(8)), return_exceptions=True
        )
        assert {type(result) for result in results} == {EngineDied}
        tgi.before_event = None
        assert await read(engine, "Again", 3)


async def test_a_half_open_connection_is_given_up_in_time(attached: Any):
    async with attached({"read_timeout": 5.0}) as (engine, tgi, _):

        async def silent(exchange: Any, number: int) -> None:
            if number == 2:
                await asyncio.sleep(3600)

        tgi.before_event = silent
        got: list[int] = []
        with pytest.raises(EngineUnresponsive, match="read_timeout"):  # noqa: PT012 the block is what is looked at
            async with engine.stream("Once upon a time", sampling=GREEDY, max_tokens=50) as stream:
                async for chunk in stream:
                    got += chunk.token_ids
        assert len(got) == 2
        tgi.before_event = None
        assert await read(engine, "Again", 3)


@pytest.mark.parametrize(
    "wrong",
    [
        b"data: {not json\n\n",
        b'data: {"token": {"id": "7", "logprob": 0, "text": "", "special": false}}\n\n',
        b'data: {"index": 1}\n\n',
        b"data: [1, 2]\n\n",
        b"<html>502 Bad Gateway</html>\n\n",
        b"data: \xff\xfe\n\n",
        b"data:" + b"x" * (17 * 2**20),
    ],
    ids=["json", "type", "no-token", "list", "html", "bytes", "endless"],
)
async def test_a_malformed_event_is_a_typed_error_of_its_request_alone(wrong: bytes, attached: Any):
    async with attached() as (engine, tgi, _):

        async def garbage(exchange: Any, number: int) -> None:
            if number == 2 and "wrong" in exchange.json()["inputs"]:
                await exchange.write(wrong)

        tgi.before_event = garbage
        bad, good = await asyncio.gather(
            read(engine, "wrong one", 20), read(engine, "right one", 20), return_exceptions=True
        )
        assert type(bad) is MalformedAnswer
        assert isinstance(good, list)
        assert good


async def test_an_answer_that_ends_early_is_malformed(attached: Any):
    async with attached() as (engine, tgi, _):
        events = tgi.events

        async def short(body: Any, *, stream: bool):
            async for event in events(body, stream=stream):
                yield event
                return

        tgi.events = short
        with pytest.raises(MalformedAnswer, match="before it is complete"):
            await read(engine, "Once upon a time", 9)


async def test_compressed_streams_are_the_same(attached: Any):
    async with attached() as (engine, tgi, _):
        plain = await read(engine, "Once upon a time", 30)
        whole = await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=30)
        tgi.compress = True
        assert await read(engine, "Once upon a time", 30) == plain
        assert (await engine.generate("Once upon a time", sampling=GREEDY, max_tokens=30)).token_ids == whole.token_ids
        assert tgi.compressed == 2


async def test_a_storm_of_429_is_overloaded_each_time_and_then_over(attached: Any):
    # The SDK would never hand over so many by itself: it is told that the server runs as many as it likes.
    config = {"scheduling": {"max_num_seqs": 100}}
    async with attached(config=config, max_concurrent_requests=4) as (engine, _tgi, _server):
        results = await asyncio.gather(
            *(read(engine, f"Story {number}", 30) for number in range(100)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, Overloaded)]
        served = [result for result in results if isinstance(result, list)]
        assert len(refused) + len(served) == 100
        assert refused
        assert served
        assert all(error.retry_after > 0 for error in refused)
        assert await read(engine, "Afterwards", 3)


async def test_a_thousand_streams_that_are_left_leave_nothing(attached: Any):
    async with attached(max_concurrent_requests=512) as (engine, _tgi, _server):

        async def leave(number: int) -> None:
            async with engine.stream(f"Story {number % 50}", sampling=GREEDY, max_tokens=200) as stream:
                await anext(aiter(stream))

        for start in range(0, 1000, 50):
            await asyncio.gather(*map(leave, range(start, start + 50)))
        assert await read(engine, "Afterwards", 3)
