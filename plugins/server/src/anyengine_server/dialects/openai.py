"""``/v1/completions`` as engines extend it: what its answers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
from anyengine.outputs import TokenLogprobs
from msgspec import UNSET, Struct, UnsetType

from anyengine_server.dialects.base import Piece
from anyengine_server.errors import MalformedAnswer

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

    from anyengine_server.client import EventStream
    from anyengine_server.sequence import Reason
    from anyengine_server.sse import Event

__all__ = ["Choice", "Completion", "Logprobs", "event_piece", "finish_reason", "token_logprobs"]

_DONE = b"[DONE]"
_BY_ID = "token_id:"
#: Finish reason there → ours.
_REASONS: dict[str, Reason] = {"stop": "stop", "length": "length", "abort": "abort", "cancelled": "abort"}


class Logprobs(Struct):
    """``logprobs`` of a choice; tokens are written as ``token_id:N``."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(Struct):
    """A choice, or what is new in it."""

    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] | None = None


class Completion(Struct):
    """An answer, or an event. An event that tells of an error has ``error`` or ``message`` instead of choices."""

    choices: list[Choice] | UnsetType = UNSET
    error: Any = UNSET
    object: str | None = None


_DECODER = msgspec.json.Decoder(Completion)


def event_piece(events: EventStream, event: Event, request: TokenRequest) -> tuple[Choice, Piece] | None:
    """The choice of an event and what it brings; None for one without.

    Raises:
        MalformedAnswer: it is no event of such a server.
        AnyEngineError: it tells of an error.
    """
    if event.data == _DONE:
        return None
    chunk = events.decoded(event, _DECODER)
    if chunk.error is not UNSET or chunk.object == "error" or event.name == "error":
        raise events.error(event)
    if chunk.choices is UNSET:
        raise MalformedAnswer(f"the server sent an event without choices: {event.data[:120]!r}")
    if not chunk.choices:
        return None  # usage
    choice = chunk.choices[0]
    return choice, piece_of(choice, request)


def piece_of(choice: Choice, request: TokenRequest) -> Piece:
    """What a choice brings.

    Raises:
        MalformedAnswer: the server does not send token ids.
    """
    if choice.token_ids is None:
        if choice.finish_reason is None:
            raise MalformedAnswer("the server sends no token ids; it may be too old, or not the engine that was named")
        choice.token_ids = []
    entries = None if request.logprobs is None else token_logprobs(choice.logprobs, request.logprobs)
    return Piece(choice.token_ids, entries, finish_reason(choice.finish_reason))


def finish_reason(reason: str | None) -> Reason | None:
    """Ours.

    Raises:
        MalformedAnswer: one that is not known.
    """
    if reason is None:
        return None
    if reason not in _REASONS:
        raise MalformedAnswer(f"the server ended a sequence with the reason {reason!r}")
    return _REASONS[reason]


def _token(name: str) -> int:
    number = name.removeprefix(_BY_ID)
    if number == name or not number.isdecimal():
        raise MalformedAnswer(f"the server wrote a token as {name[:40]!r}, not by its id")
    return int(number)


def token_logprobs(found: Logprobs | None, wanted: int) -> list[TokenLogprobs]:
    """One entry a token: the chosen one, and as many most likely ones as were asked for."""
    if found is None:
        return []
    entries: list[TokenLogprobs] = []
    tops = found.top_logprobs or [None] * len(found.tokens)
    for name, logprob, top in zip(found.tokens, found.token_logprobs, tops, strict=True):
        if logprob is None:
            raise MalformedAnswer("the server left out the log-probability of a generated token")
        likely = {_token(other): value for other, value in (top or {}).items()}
        entries.append(entry_of(_token(name), logprob, likely, wanted))
    return entries


def entry_of(token: int, logprob: float, others: dict[int, float], wanted: int) -> TokenLogprobs:
    """An entry with the ``wanted`` most likely of the others, most likely first, and the chosen token."""
    ranked = sorted((others | {token: logprob}).items(), key=lambda pair: (-pair[1], pair[0]))
    kept = dict(ranked[:wanted])
    if token not in kept:
        kept[token] = logprob
    return TokenLogprobs(token, logprob, kept)


def prompt_logprobs(choice: Choice, request: TokenRequest) -> list[TokenLogprobs | None] | None:
    """``prompt_logprobs`` as vLLM has them: for each prompt token the candidates by id."""
    if request.prompt_logprobs is None or choice.prompt_logprobs is None:
        return None
    entries: list[TokenLogprobs | None] = []
    for token, candidates in zip(request.prompt_token_ids, choice.prompt_logprobs, strict=True):
        if candidates is None:
            entries.append(None)
            continue
        values = {int(name): cast("float", found["logprob"]) for name, found in candidates.items()}
        if token not in values:
            raise MalformedAnswer("the server's prompt log-probabilities are of other tokens than were sent")
        entries.append(entry_of(token, values[token], values, request.prompt_logprobs))
    return entries
