"""A *simulated* ``trtllm-serve`` over a real socket, for tests only: its tokens come from the simulated ``LLM``."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

#: Fields of a completion request that it knows; others are refused.
_FIELDS = {
    "detokenize",
    "ignore_eos",
    "include_stop_str_in_output",
    "max_tokens",
    "model",
    "prompt",
    "seed",
    "stop_token_ids",
    "stream",
    "temperature",
    "top_k",
    "top_p",
}


class Server:
    """Serves one model.

    Attributes:
        asked: ``METHOD path`` of every request.
        aborted: streams that the reader left.
    """

    def __init__(self, llm: Any, classes: dict[str, Any], token: str | None) -> None:
        self.asked: list[str] = []
        self.aborted = 0
        self._llm, self._classes, self._token = llm, classes, token

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line = (await reader.readline()).decode().split()
        if not line:
            return False
        headers: dict[str, str] = {}
        while header := (await reader.readline()).strip().decode():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append(f"{line[0]} {line[1]}")
        if self._token is not None and headers.get("authorization") != f"Bearer {self._token}":
            _send(writer, 401, {"message": "who are you?"})
        elif line[1] == "/v1/completions":
            return await self._complete(json.loads(body), writer)
        else:
            _send(writer, 200, {"/v1/models": {"data": [{"id": "storyteller"}]}, "/metrics": []}.get(line[1], {}))
        await writer.drain()
        return True

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        unknown = set(body) - _FIELDS
        if unknown or not body["stream"]:
            _send(writer, 400, {"object": "error", "message": f"unknown: {sorted(unknown)}", "code": 400})
            return True
        names = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop_token_ids", "include_stop_str_in_output")
        params = self._classes["SamplingParams"](
            end_id=-1, detokenize=body["detokenize"], **{name: body[name] for name in names if name in body}
        )
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        result, seen = self._llm.generate_async(body["prompt"], params, streaming=True), 0
        try:
            async for step in result:
                output = step.outputs[0]
                choice = {"index": 0, "text": "", "token_ids": output.token_ids[seen:]}
                seen = len(output.token_ids)
                choice |= {"finish_reason": output.finish_reason, "stop_reason": output.stop_reason}
                writer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                await writer.drain()
                if writer.is_closing():
                    raise ConnectionResetError
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        except ConnectionError:
            self.aborted += 1
            result.abort()
        return False


def _send(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


@asynccontextmanager
async def serve(llm: Any, classes: dict[str, Any], token: str | None = None) -> AsyncGenerator[tuple[Server, str]]:
    """The server and its address, as long as the context lasts."""
    server = Server(llm, classes, token)
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    try:
        port = listener.sockets[0].getsockname()[1]
        yield server, f"http://127.0.0.1:{port}"
    finally:
        listener.close()
