"""Whatever a server does on the wire comes out as data or as a typed error, and leaves no connection."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2 as httpx
import pytest
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineUnresponsive,
    Failure,
    InvalidRequest,
    Overloaded,
)
from anyengine_server import (
    MalformedAnswer,
    ServerClient,
    ServerOptions,
    ServerRefused,
    free_port,
    transport_error,
)
from anyengine_server.testing import Exchange, SimulatedServer


@asynccontextmanager
async def talking(handler: Any, **options: Any):
    async with SimulatedServer(handler) as server:
        client = ServerClient(ServerOptions(url=server.url, **options))
        try:
            yield client, server
        finally:
            await client.aclose()
        await server.idle()
        assert server.errors == []
        assert client.open_requests == 0


@pytest.mark.parametrize("error", [ConnectionResetError("Connection lost"), ValueError("a mistake")])
async def test_what_a_handler_raises_while_the_simulated_server_stops_is_looked_at(error):
    """asyncio would report it to another test."""
    began = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise error

    async with SimulatedServer(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        await began.wait()
        await server.stop()
        writer.close()
    gc.collect()
    assert server.errors == ([] if isinstance(error, OSError) else [error])


async def test_json_goes_there_and_back_with_token_and_headers():
    async def echo(exchange: Exchange) -> None:
        seen = {name: exchange.headers.get(name) for name in ("authorization", "x-own", "content-type")}
        await exchange.reply(200, {"path": exchange.path, "body": exchange.json(), "seen": seen})

    async with talking(echo, token="secret", headers={"X-Own": "yes"}) as (client, _):  # noqa: S106 no secret
        answer = await client.post_json("/a/b", {"n": [1, 2]}, dict[str, Any])
    seen = {"authorization": "Bearer secret", "x-own": "yes", "content-type": "application/json"}
    assert answer == {"path": "/a/b", "body": {"n": [1, 2]}, "seen": seen}


async def test_connections_are_used_again():
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(200, 1)

    async with talking(answer) as (client, server):
        for _ in range(20):
            assert await client.get_json("/", int) == 1
        assert server.accepted == 1


@pytest.mark.parametrize(
    ("status", "headers", "kind", "facts"),
    [
        (400, {}, InvalidRequest, {}),
        (401, {}, ServerRefused, {"field": "native.token", "status": 401}),
        (403, {}, ServerRefused, {"status": 403}),
        (404, {}, ServerRefused, {"field": None, "status": 404}),
        (408, {}, EngineUnresponsive, {}),
        (413, {}, InvalidRequest, {}),
        (422, {}, InvalidRequest, {}),
        (429, {}, Overloaded, {"retry_after": 1.0}),
        (429, {"retry-after": "2.5"}, Overloaded, {"retry_after": 2.5}),
        (429, {"retry-after": "soon"}, Overloaded, {"retry_after": 1.0}),
        (500, {}, Failure, {}),
        (502, {}, EngineDied, {}),
        (503, {}, EngineDied, {}),
        (503, {"retry-after": "4"}, Overloaded, {"retry_after": 4.0}),
        (504, {}, EngineUnresponsive, {}),
        (302, {"location": "/elsewhere"}, Failure, {}),
    ],
)
async def test_each_status_is_an_error_with_the_servers_words(status, headers, kind, facts):
    async def refuse(exchange: Exchange) -> None:
        await exchange.reply(status, {"error": {"message": "its own words"}}, headers)

    async with talking(refuse) as (client, _):
        for ask in (client.get("/x"), client.post_json("/x", {}, int)):
            with pytest.raises(AnyEngineError, match=f"answered {status}: its own words") as caught:
                await ask
            assert type(caught.value) is kind
            assert {name: getattr(caught.value, name) for name in facts} == facts


async def test_a_date_says_when_to_come_back():
    async def refuse(exchange: Exchange) -> None:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
        await exchange.reply(429, None, {"retry-after": later})

    async with talking(refuse) as (client, _):
        with pytest.raises(Overloaded) as caught:
            await client.get("/")
    assert 50 < caught.value.retry_after <= 60


async def test_nobody_listens():
    client = ServerClient(ServerOptions(url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(EngineDied, match="cannot be reached"):
        await client.get("/")
    await client.aclose()


async def test_a_server_that_accepts_and_says_nothing_is_unresponsive():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = ServerOptions(url=f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout=0.05)
        client = ServerClient(options)
        with pytest.raises(EngineUnresponsive, match="read_timeout"):
            await client.get("/")
        await client.aclose()


async def test_an_answer_that_breaks_off_is_a_death():
    async def break_off(exchange: Exchange) -> None:
        await exchange.start(200, {"content-type": "application/json"})
        await exchange.write(b'{"half":')
        exchange.break_off()

    async with talking(break_off) as (client, _):
        with pytest.raises(EngineDied):
            await client.get_json("/", dict)


@pytest.mark.parametrize("body", [b"{", b'"text"', b"\xff\xfe", b""])
async def test_an_answer_of_another_type_is_malformed(body: bytes):
    async def answer(exchange: Exchange) -> None:
        await exchange.start(200, {"content-type": "application/json"})
        if body:
            await exchange.write(body)
        await exchange.end()

    async with talking(answer) as (client, _):
        with pytest.raises(MalformedAnswer, match="GET /where"):
            await client.get_json("/where", int)


async def test_compressed_answers_and_streams_are_read():
    async def answer(exchange: Exchange) -> None:
        exchange.compress = "gzip" in exchange.headers["accept-encoding"]
        assert exchange.compress
        if exchange.method == "GET":
            await exchange.reply(200, list(range(1000)))
            return
        await exchange.events()
        for number in range(100):
            await exchange.event(number)
        await exchange.end()

    async with talking(answer) as (client, _):
        assert await client.get_json("/", list[int]) == list(range(1000))
        async with client.events("/", {}) as events:
            assert [int(event.data) async for event in events] == list(range(100))


async def test_wrong_compression_is_malformed():
    async def answer(exchange: Exchange) -> None:
        await exchange.start(200, {"content-type": "application/json", "content-encoding": "gzip"})
        await exchange.write(b"this is no gzip")
        await exchange.end()

    async with talking(answer) as (client, _):
        with pytest.raises(MalformedAnswer, match="compressed"):
            await client.get("/")


async def test_what_is_no_stream_of_events_is_malformed():
    async def answer(exchange: Exchange) -> None:
        await exchange.reply(200, {"answer": "at once"})

    async with talking(answer) as (client, _):
        with pytest.raises(MalformedAnswer, match="application/json, not with events"):
            async with client.events("/", {}):
                pass


async def test_leaving_a_stream_closes_its_connection():
    gone = asyncio.Event()

    async def forever(exchange: Exchange) -> None:
        try:
            await exchange.events()
            while True:
                await exchange.event(1)
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    async with talking(forever) as (client, server):
        async with client.events("/", {}) as events:
            assert (await anext(events)).data == b"1"
            assert server.open_connections == 1
        await gone.wait()


async def test_a_stream_that_ends_within_an_event_is_malformed():
    async def half(exchange: Exchange) -> None:
        await exchange.events()
        await exchange.write(b"data: 1\n\ndata: 2")
        await exchange.end()

    async with talking(half) as (client, _):
        with pytest.raises(MalformedAnswer, match="before it is complete"):  # noqa: PT012 the block is what is looked at
            async with client.events("/", {}) as events:
                async for _ in events:
                    pass


def test_every_exception_of_the_client_is_mapped():
    kinds = {kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert len(kinds) > 20
    for kind in kinds:
        error = transport_error(kind.__new__(kind), "GET /")
        assert isinstance(error, Failure), kind
        assert "GET /" in str(error)
