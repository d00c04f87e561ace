"""LMDeploy's ``api_server``, 0.18.

Its ``/v1/completions`` answers with text alone; ``/generate`` takes token ids and gives them back.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine.capabilities import Capabilities
from anyengine.errors import EngineStartupError, InvalidConfig
from anyengine.stats import EngineStats
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from anyengine_server.dialects.base import Dialect, ModelList, Piece, ServerFacts, check_temperature
from anyengine_server.dialects.openai import finish_reason
from anyengine_server.errors import MalformedAnswer, ServerRefused
from anyengine_server.metrics import Metrics

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

    from anyengine_server.client import EventStream, ServerClient
    from anyengine_server.options import ServerOptions
    from anyengine_server.sse import Event

__all__ = ["LMDEPLOY"]


class _Meta(Struct):
    finish_reason: dict[str, Any] | None = None


class _Chunk(Struct):
    output_ids: list[int] | UnsetType | None = UNSET
    meta_info: _Meta | None = None
    error: Any = UNSET


class _Encoded(Struct):
    input_ids: list[list[int]]


_DECODER = msgspec.json.Decoder(_Chunk)

_CAPABILITIES = Capabilities(
    config=frozenset({"max_model_len"}),
    native=True,
    # A repetition penalty counts generated tokens only; there is no seed, and no other penalty.
    sampling=frozenset({"min_p", "temperature", "top_k", "top_p"}),
    # ignore_eos would switch the caller's own stop tokens off as well; there is no min_tokens.
    request=frozenset({"stop_token_ids"}),
    token_prompts=True,
    unseeded="varies",
)


class LMDeployDialect(Dialect):
    """``/generate`` with ``input_ids`` and ``output_ids``. Never run on the real server: see README.md."""

    name = "lmdeploy"
    path = "/generate"

    def capabilities(self, facts: ServerFacts | None = None) -> Capabilities:  # noqa: ARG002 all are alike
        names = _CAPABILITIES.sampling | _CAPABILITIES.request | {"max_model_len", "native", "token_prompts"}
        return replace(_CAPABILITIES, unproven=names)

    def check(self, request: TokenRequest) -> None:
        check_temperature("LMDeploy", request.sampling.temperature, 0.01, 2.0)

    def body(self, request: TokenRequest, facts: ServerFacts, *, stream: bool) -> dict[str, Any]:  # noqa: ARG002
        sampling = request.sampling
        greedy = sampling.greedy
        return {
            "input_ids": request.prompt_token_ids,
            "max_tokens": request.max_tokens,
            "stop_token_ids": sorted(request.terminators),
            "stream": stream,
            # The server always samples. Of one token, that is greedy on both of its backends.
            "temperature": 1.0 if greedy else sampling.temperature,
            "top_k": 1 if greedy else sampling.top_k,
            "top_p": 1.0 if greedy else sampling.top_p,
            "min_p": 0.0 if greedy else sampling.min_p,
            "repetition_penalty": 1.0,
            "skip_special_tokens": False,
            # Else the token that ended it is left out.
            "include_stop_str_in_output": True,
        }

    def piece(self, events: EventStream, event: Event, request: TokenRequest) -> Piece | None:  # noqa: ARG002
        if event.data == b"[DONE]":
            return None
        chunk = events.decoded(event, _DECODER)
        if chunk.error is not UNSET:
            raise events.error(event)
        if chunk.output_ids is UNSET:
            raise MalformedAnswer(f"LMDeploy sent an event without output_ids: {event.data[:120]!r}")
        reason = (chunk.meta_info.finish_reason or {}).get("type") if chunk.meta_info else None
        if reason == "error":
            raise events.error(event)
        # The last event has no text of its own, and the token that ended the sequence (include_stop_str_in_output).
        return Piece(list(chunk.output_ids or ()), None, finish_reason(reason))

    async def learn(self, client: ServerClient, options: ServerOptions, model: str) -> ServerFacts:  # noqa: ARG002
        # The model stands first, and then its adapters, which /generate has no member for.
        cards = (await client.get_json("/v1/models", ModelList)).data
        if not cards:
            raise EngineStartupError("the server has no model yet")
        if options.served_model not in {None, cards[0].id}:
            raise InvalidConfig(
                f"native.served_model: the server's /generate answers for {cards[0].id!r} only, not for "
                f"{options.served_model!r}",
                field="native.served_model",
            )
        return ServerFacts(model=cards[0].id)

    async def tokenize(self, client: ServerClient, facts: ServerFacts, text: str) -> list[int] | None:  # noqa: ARG002
        # Special tokens are added always; without add_bos the first is left out again. What stands behind is what an
        # empty text has, too.
        body = {"input": [text, ""], "do_preprocess": False, "add_bos": False}
        ids, added = (await client.post_json("/v1/encode", body, _Encoded)).input_ids
        return ids[: len(ids) - len(added)] if added and ids[-len(added) :] == added else ids

    async def stats(self, client: ServerClient) -> EngineStats:
        try:
            text = (await client.get("/metrics/")).decode(errors="replace")
        except ServerRefused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return EngineStats()  # started with --disable-metrics
        metrics = Metrics(text)
        return EngineStats(
            running=metrics.count("lmdeploy:num_requests_running"),
            waiting=metrics.count("lmdeploy:num_requests_waiting"),
            prompt_tokens=metrics.count("lmdeploy:prompt_tokens_total"),
            generated_tokens=metrics.count("lmdeploy:generation_tokens_total"),
            time_to_first_token=metrics.histogram("lmdeploy:time_to_first_token_seconds"),
            queue_time=metrics.histogram("lmdeploy:request_queue_time_seconds"),
            native=metrics.native("lmdeploy:"),
        )


LMDEPLOY = LMDeployDialect()
