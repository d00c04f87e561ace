"""vLLM's own server (``vllm serve``), 0.25 to 0.33."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine.capabilities import Capabilities, Conflict
from anyengine.errors import AnyEngineError, InvalidRequest, UnsupportedParameter
from anyengine.request import SamplingParams
from msgspec import Struct
from msgspec.structs import replace

from anyengine_server.dialects import openai
from anyengine_server.dialects.base import Dialect, Piece, ServerFacts, check_temperature
from anyengine_server.dialects.vllm_stats import read_stats
from anyengine_server.errors import Answer, MalformedAnswer, message_of

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from anyengine.stats import EngineStats

    from anyengine_server.client import EventStream, ServerClient
    from anyengine_server.options import ServerOptions
    from anyengine_server.sse import Event

__all__ = ["VLLM"]

#: What ``vllm serve`` allows unless it is told otherwise.
MAX_LOGPROBS = 20
#: The server adds a bias within these bounds, and cuts others off to them.
_BIAS = 100.0
#: Nats that two log-probabilities of one distribution may differ by: batches of different shapes round differently.
_ROUNDING = 0.05

CONFLICTS = (
    Conflict(
        "sampling.logit_bias",
        "sampling.repetition_penalty",
        "vLLM adds the bias before it multiplies, here it is added after",
    ),
    Conflict(
        "sampling.min_p",
        "sampling.top_p",
        "vLLM applies min_p first, and top_p to what that leaves; here it is the other way round",
    ),
    Conflict(
        "request.min_tokens",
        "request.ignore_eos",
        "vLLM's server holds back the model's end-of-sequence tokens too, which ignore_eos makes ordinary ones",
    ),
    *(
        Conflict("request.structured", other, "what the constraint leaves may be ruled out, and vLLM draws it then")
        for other in ("request.ignore_eos", "request.min_tokens", "sampling.allowed_token_ids")
    ),
)


class _Tokens(Struct):
    tokens: list[int]


class VLLMDialect(Dialect):
    """``/v1/completions`` with token ids in (``prompt``) and out (``return_token_ids``)."""

    name = "vllm"
    path = "/v1/completions"

    def capabilities(self, facts: ServerFacts | None = None) -> Capabilities:
        # Bad words are strings there, spelt by the server; priorities need a scheduler that servers seldom have;
        # grammars are in the notation of a backend that the server does not name.
        every = Capabilities(
            config=frozenset({"max_model_len"}),
            native=True,
            sampling=frozenset(SamplingParams.model_fields) - {"bad_words"},
            request=frozenset({"cache_salt", "ignore_eos", "lora", "min_tokens", "stop_token_ids"}),
            token_prompts=True,
            logprobs="raw-unless-structured",
            prompt_logprobs="raw",
            max_logprobs=MAX_LOGPROBS,
            score=True,
            structured=frozenset({"choice", "json_schema", "regex"}),
            unseeded="varies",
            conflicts=CONFLICTS,
        )
        if facts is None:
            return every
        levels: dict[str, Any] = {}
        if not facts.max_logprobs:
            levels = {"logprobs": "none", "prompt_logprobs": "none", "score": False}
        elif not facts.raw_logprobs:
            levels = {"logprobs": "neutral-only", "prompt_logprobs": "none", "score": False}
        request = every.request if facts.loras else every.request - {"lora"}
        return replace(every, request=request, max_logprobs=facts.max_logprobs, **levels)

    def check(self, request: TokenRequest) -> None:
        sampling = request.sampling
        check_temperature("vLLM", sampling.temperature, 0.01, 2.0)
        if any(abs(value) > _BIAS for value in (sampling.logit_bias or {}).values()):
            raise UnsupportedParameter(
                f"sampling.logit_bias: vLLM's server cuts numbers off at -{_BIAS:g} and {_BIAS:g}",
                field="sampling.logit_bias",
            )
        allowed = sampling.allowed_token_ids
        if allowed is not None and request.min_tokens and set(allowed) <= request.terminators:
            raise InvalidRequest(
                "sampling.allowed_token_ids: all of them are ruled out by min_tokens",
                field="sampling.allowed_token_ids",
            )

    def body(self, request: TokenRequest, facts: ServerFacts, *, stream: bool) -> dict[str, Any]:
        sampling = request.sampling
        # Everything that a server may have a default of its own for is said, neutral or not.
        body: dict[str, Any] = {
            "model": request.lora or facts.model,
            "prompt": request.prompt_token_ids,
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # Terminators travel as stop tokens, so the last token says why a sequence ended.
            "stop_token_ids": sorted(request.terminators),
            "ignore_eos": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "stream": stream,
        }
        optional: dict[str, Any] = {
            "seed": sampling.seed,
            "logit_bias": None
            if sampling.logit_bias is None
            else {str(token): bias for token, bias in sampling.logit_bias.items()},
            "allowed_token_ids": None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
            "logprobs": request.logprobs,
            "return_tokens_as_token_ids": None if request.logprobs is None else True,
            "prompt_logprobs": request.prompt_logprobs,
            "cache_salt": request.cache_salt,
            "structured_outputs": _structured(request),
        }
        return body | {name: value for name, value in optional.items() if value is not None}

    def piece(self, events: EventStream, event: Event, request: TokenRequest) -> Piece | None:
        found = openai.event_piece(events, event, request)
        return None if found is None else found[1]

    def whole(self, answer: bytes, request: TokenRequest) -> Piece:
        try:
            content = msgspec.json.decode(answer, type=openai.Completion)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedAnswer(f"vLLM's answer cannot be read: {error}") from error
        choices = content.choices
        if not isinstance(choices, list) or not choices:
            raise MalformedAnswer("vLLM answered without a choice")
        piece = openai.piece_of(choices[0], request)
        piece.prompt_logprobs = openai.prompt_logprobs(choices[0], request)
        return piece

    def error(self, answer: Answer) -> AnyEngineError:
        if answer.status == HTTPStatus.NOT_FOUND and "model" in message_of(answer):
            return InvalidRequest(f"the server does not know the model: {message_of(answer)}")
        return super().error(answer)

    async def learn(self, client: ServerClient, options: ServerOptions, model: str) -> ServerFacts:
        facts = await super().learn(client, options, model)
        return await _learn_logprobs(self, client, facts)

    async def tokenize(self, client: ServerClient, facts: ServerFacts, text: str) -> list[int] | None:
        body = {"model": facts.model, "prompt": text, "add_special_tokens": False}
        return (await client.post_json("/tokenize", body, _Tokens)).tokens

    async def stats(self, client: ServerClient) -> EngineStats:
        return read_stats((await client.get("/metrics")).decode(errors="replace"))


async def _learn_logprobs(dialect: VLLMDialect, client: ServerClient, facts: ServerFacts) -> ServerFacts:
    """Whether log-probabilities are the model's own: a server may have been told to give them after the temperature.

    Two tokens are generated at two temperatures; raw log-probabilities are the same at both.
    """
    best: list[float] = []
    for temperature in (0.5, 2.0):
        body: dict[str, Any] = {
            "model": facts.model,
            "prompt": [0],
            "max_tokens": 1,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": MAX_LOGPROBS,
            "return_tokens_as_token_ids": True,
        }
        try:
            answer = await client.post_json(dialect.path, body, openai.Completion)
        except InvalidRequest:
            return facts  # it gives none, or fewer than usual
        choices = answer.choices
        if not isinstance(choices, list) or not choices or choices[0].logprobs is None:
            return facts
        best.append(max((choices[0].logprobs.top_logprobs or [{}])[0].values()))  # pyright: ignore[reportOptionalMemberAccess]
    raw = abs(best[0] - best[1]) < _ROUNDING
    return replace(facts, raw_logprobs=raw, max_logprobs=MAX_LOGPROBS)


def _structured(request: TokenRequest) -> dict[str, Any] | None:
    wanted = request.structured
    if wanted is None:
        return None
    if wanted.choice is not None:
        return {"choice": list(wanted.choice)}
    if wanted.regex is not None:
        return {"regex": wanted.regex}
    schema = wanted.json_schema
    return {"json": json.dumps(schema) if isinstance(schema, bool) else schema}


VLLM = VLLMDialect()
