"""What TGI's routes answer, as far as it is read (``tests/contract`` holds the names)."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

__all__ = [
    "STREAM_DECODER",
    "Details",
    "FinishReason",
    "GenerateResponse",
    "Info",
    "PrefillToken",
    "SimpleToken",
    "StreamDetails",
    "StreamResponse",
    "Token",
]

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Token(Struct, gc=False):
    """A generated token, or an alternative to one."""

    id: int
    logprob: float | None = None


class PrefillToken(Struct, gc=False):
    """A token of the prompt; the first has no log-probability."""

    id: int
    logprob: float | None = None


class SimpleToken(Struct, gc=False):
    """A token of ``/tokenize``."""

    id: int


class StreamDetails(Struct):
    """The end of a stream."""

    finish_reason: FinishReason
    generated_tokens: int
    input_length: int


class StreamResponse(Struct):
    """An event of ``/generate_stream``; or an error, which has ``error`` instead of a token."""

    token: Token | UnsetType = UNSET
    top_tokens: list[Token] = msgspec.field(default_factory=list[Token])
    details: StreamDetails | None = None
    error: str | UnsetType = UNSET


class Details(Struct):
    """``details`` of ``/generate``."""

    finish_reason: FinishReason
    generated_tokens: int
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = msgspec.field(default_factory=list[list[Token]])


class GenerateResponse(Struct):
    """Answer of ``/generate``."""

    details: Details | None = None


class Info(Struct):
    """Answer of ``/info``."""

    model_id: str
    version: str
    max_concurrent_requests: int
    max_input_tokens: int
    max_total_tokens: int
    max_stop_sequences: int


STREAM_DECODER = msgspec.json.Decoder(StreamResponse)
