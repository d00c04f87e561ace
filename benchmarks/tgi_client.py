"""The HTTP client of ``anyengine-tgi`` against ``huggingface_hub.AsyncInferenceClient``, on a *simulated* TGI.

    uv run python benchmarks/tgi_client.py [--pairs 10] [--json out.json]

The server is a process of its own that sends made-up events, one token each, as fast as they are taken; so what is
measured is the client. 64 streams at once, both clients in turn within a pair; each figure is the median over pairs
with a 95% interval (order statistics). Not a test of TGI.

* throughput and processor time a token, ours over theirs
* answers that the client still holds after 64 streams were read to their end
* streams that the server still feeds after 64 were left at their first token
* what an error within a stream (``incomplete_generation_stream``), and a status of 422, are for the caller
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
from anyengine_server import ServerClient, ServerOptions
from anyengine_tgi.errors import tgi_error
from anyengine_tgi.wire import STREAM_DECODER, Token
from environment import environment
from huggingface_hub import AsyncInferenceClient
from intervals import interval

if TYPE_CHECKING:
    from collections.abc import Callable

STREAMS = 64
TOKENS = 400
HEAD = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
ERROR = {"error": "the words", "error_type": "incomplete_generation_stream"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(data: dict[str, Any]) -> bytes:
    return _chunk(b"data:" + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")


class Server:
    """Answers ``/generate_stream`` with tokens, ``/endless`` with no end, ``/open`` with its connections, …"""

    def __init__(self) -> None:
        self.streams = 0
        details = {"finish_reason": "length", "generated_tokens": TOKENS, "seed": None, "input_length": 4}
        events = [
            {
                "index": number + 1,
                "token": {"id": 1000 + number, "text": " word", "logprob": -1.25, "special": False},
                "generated_text": None if number + 1 < TOKENS else " word" * TOKENS,
                "details": None if number + 1 < TOKENS else details,
            }
            for number in range(TOKENS)
        ]
        self.events = [_event(event) for event in events]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request after the other."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                await reader.readexactly(length)
                await getattr(self, line.split()[1].decode().strip("/"))(writer)
        except OSError:
            pass
        finally:
            writer.close()

    async def generate_stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", b"text/event-stream"))
        for event in self.events:
            writer.write(event)
            await writer.drain()
            await asyncio.sleep(0)  # a token of every stream in turn
        writer.write(_chunk(b""))

    async def endless(self, writer: asyncio.StreamWriter) -> None:
        self.streams += 1
        try:
            writer.write(HEAD % (b"200 OK", b"text/event-stream"))
            while not writer.is_closing():
                writer.write(self.events[0])
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            self.streams -= 1

    async def broken(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", b"text/event-stream") + self.events[0] + _event(ERROR) + _chunk(b""))

    async def refused(self, writer: asyncio.StreamWriter) -> None:
        data = json.dumps(ERROR | {"error_type": "template_error"}).encode()
        writer.write(HEAD % (b"422 Unprocessable Entity", b"application/json") + _chunk(data) + _chunk(b""))

    async def open(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", b"application/json") + _chunk(str(self.streams).encode()) + _chunk(b""))


async def serve() -> None:
    """Until the standard input ends."""
    listener = await asyncio.start_server(Server().answer, "127.0.0.1", 0, backlog=256)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


class Ours:
    """What the plugin does with a stream, without its deltas."""

    def __init__(self, url: str) -> None:
        self.client = ServerClient(ServerOptions(url=url), tgi_error)

    async def read(self, path: str, most: int | None = None) -> int:
        """Read a stream; its tokens."""
        count = 0
        async with self.client.events(path, {"inputs": "a", "parameters": {"details": True}}) as events:
            async for event in events:
                chunk = events.decoded(event, STREAM_DECODER)
                if not isinstance(chunk.token, Token):
                    raise events.error(event)
                count += chunk.token.id >= 1000
                if count == most:
                    break
        return count

    async def close(self) -> None:
        await self.client.aclose()


class Theirs:
    """The same with the library's client; its own stream is an asynchronous iterator that is closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = AsyncInferenceClient()

    async def read(self, path: str, most: int | None = None) -> int:
        """Read a stream; its tokens."""
        count = 0
        stream: Any = await self.client.text_generation("a", details=True, stream=True, model=self.url + path)
        try:
            async for chunk in stream:
                count += chunk.token.id >= 1000
                if count == most:
                    break
        finally:
            await stream.aclose()
        return count

    async def close(self) -> None:
        await self.client.close()


async def timed(client: Any) -> tuple[float, float]:
    """(seconds, processor seconds) of all streams at once."""
    started, used = perf_counter(), process_time()
    counts = await asyncio.gather(*(client.read("/generate_stream") for _ in range(STREAMS)))
    assert counts == [TOKENS] * STREAMS, "no token is lost"
    return perf_counter() - started, process_time() - used


async def held(client: Any) -> int:
    """Answers that are in memory after all streams were read."""
    await timed(client)
    gc.collect()
    return sum(isinstance(found, httpx.Response) for found in gc.get_objects())


async def left(client: Any, watcher: ServerClient) -> int:
    """Streams that the server still feeds, half a second after all were left."""
    await asyncio.gather(*(client.read("/endless", 1) for _ in range(STREAMS)))
    await asyncio.sleep(0.5)
    return await watcher.get_json("/open", int)


async def error_of(client: Any, path: str) -> str:
    """What an error is for the caller."""
    try:
        await client.read(path)
    except Exception as error:  # noqa: BLE001 it is what is looked at
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return "none"


async def measure(url: str, pairs: int) -> dict[str, Any]:
    """All figures."""
    makers: dict[str, Callable[[str], Any]] = {"ours": Ours, "theirs": Theirs}
    speed: list[float] = []
    cost: list[float] = []
    each: dict[str, list[float]] = {"ours": [], "theirs": []}
    for pair in range(pairs + 1):
        runs: dict[str, tuple[float, float]] = {}
        for name in list(makers) if pair % 2 else list(makers)[::-1]:
            client = makers[name](url)
            await client.read("/generate_stream")
            runs[name] = await timed(client)
            await client.close()
        if pair:  # the first warms up
            speed.append(runs["theirs"][0] / runs["ours"][0])
            cost.append(runs["ours"][1] / runs["theirs"][1])
            for name, (_, used) in runs.items():
                each[name].append(used / (STREAMS * TOKENS) * 1e6)
    figures: dict[str, Any] = {
        "throughput_ours_over_theirs": interval(speed),
        "processor_time_ours_over_theirs": interval(cost),
        "ours_us_per_token": interval(each["ours"]),
        "theirs_us_per_token": interval(each["theirs"]),
    }
    watcher = ServerClient(ServerOptions(url=url))
    for name, made in makers.items():
        client = made(url)
        figures[f"{name}_answers_held_after_all_were_read"] = await held(client)
        figures[f"{name}_streams_that_go_on_after_they_were_left"] = await left(client, watcher)
        figures[f"{name}_error_in_a_stream"] = await error_of(client, "/broken")
        figures[f"{name}_error_by_status"] = await error_of(client, "/refused")
        await client.close()
    await watcher.aclose()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None
        assert server.stdin is not None
        figures = asyncio.run(measure(f"http://127.0.0.1:{int(server.stdout.readline())}", options.pairs))
        server.stdin.close()
    for name, figure in figures.items():
        if isinstance(figure, dict):
            figure = f"{figure['median']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"  # noqa: PLW2901 as text
        print(f"{name:50} {figure}")
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
