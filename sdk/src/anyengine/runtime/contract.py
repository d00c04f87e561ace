"""Holding a backend to its contract: what it breaks becomes a :class:`~anyengine.errors.PluginError` that says so.

The caller never gets output that the contract rules out, and the author of the plugin learns what to mend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from anyengine._typed import ill_typed
from anyengine.backend.types import TokenDelta, TokenFinish
from anyengine.errors import AnyEngineError, PluginError
from anyengine.outputs import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.backend import TokenRequest

__all__ = [
    "broken",
    "cancelled_itself",
    "cause",
    "check_cached_tokens",
    "check_finish",
    "check_logprobs",
    "check_prompt_logprobs",
    "check_terminator",
    "check_types",
    "mapped",
    "words",
    "wrong_delta",
]

_REASONS = ("stop", "length", "abort")
_LOGPROBS = list[TokenLogprobs] | None


def words(error: BaseException) -> str:
    """The text of an exception of somebody else's, which may fail to give one."""
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 whatever it is, it must not stand in the place of the first
        return f"(its text cannot be had: {type(second).__name__})"


def mapped(error: Exception, engine: str) -> AnyEngineError:
    """Our own errors as they are; anything else is a plugin that did not map it."""
    if isinstance(error, AnyEngineError):
        error.engine = error.engine or engine
        return error
    message = f"{engine} raised {type(error).__name__}, which its plugin does not map: {words(error)}"
    return PluginError(message, engine=engine)


def cause(error: Exception) -> BaseException | None:
    """What a mapped error is chained to."""
    return error.__cause__ if isinstance(error, AnyEngineError) else error


def cancelled_itself() -> bool:
    """Whether a cancellation that has come out of an engine is none of ours: a task or a future of its own ended."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def broken(engine: str, what: str) -> PluginError:
    """The error for a backend that does what no backend may."""
    return PluginError(f"{engine} {what}, which breaks the contract of a backend", engine=engine)


def check_types(engine: str, value: object, kind: Any = None) -> None:
    """What a plugin gave holds what it may hold, as the reader of a worker's answers would find.

    Not for each delta of a stream: that is what :func:`wrong_delta` is for.

    Args:
        engine: its name.
        value: a struct, or a list of them.
        kind: its type; the class of the value if left out.
    """
    what = ill_typed(value, kind)
    if what is not None:
        raise broken(engine, f"gave {what}")


def wrong_delta(engine: str, delta: object) -> PluginError | None:
    """The error for a delta that is none, or whose fields have the wrong types; None if that is all right."""
    if not isinstance(delta, TokenDelta):
        return broken(engine, f"gave a {type(delta).__name__} in its stream, not a TokenDelta")
    what = ill_typed(delta)
    if what is None and not isinstance(cast("object", delta.token_ids), list):  # another sequence is sent as one
        what = f"a {type(delta.token_ids).__name__} as token_ids: expected a list"
    return None if what is None else broken(engine, f"gave {what}")


def check_finish(engine: str, request: TokenRequest, delta: TokenDelta, finish: TokenFinish, total: int) -> None:
    """The end of a sequence: a known reason, and the right one for its tokens.

    Args:
        engine: its name.
        request: what was asked for.
        delta: the last one.
        finish: its finish.
        total: tokens of the sequence with it.
    """
    if not isinstance(cast("object", finish), TokenFinish):
        raise broken(engine, f"gave a {type(finish).__name__} as finish, not a TokenFinish")
    last = delta.token_ids[-1] if delta.token_ids else None
    if finish.reason not in _REASONS:
        raise broken(engine, f"ended a sequence with the reason {finish.reason!r}")
    if finish.reason == "stop" and last not in request.terminators:
        known = sorted(request.terminators)
        raise broken(engine, f"ended a sequence with reason 'stop', but its last token ({last}) is none of {known}")
    if finish.reason == "length" and total < request.max_tokens:
        ending = last is not None and last in request.terminators
        due = f", where its last token ({last}) terminates: reason 'stop' is due" if ending else ""
        raise broken(engine, f"ended with reason 'length' after {total} of {request.max_tokens} tokens{due}")
    check_types(engine, finish)
    check_cached_tokens(engine, request, finish)
    if finish.reason != "abort":
        check_prompt_logprobs(engine, request, finish)


def check_cached_tokens(engine: str, request: TokenRequest, finish: TokenFinish | None) -> None:
    """Tokens that came from the cache are the prompt's."""
    cached, most = None if finish is None else finish.cached_tokens, len(request.prompt_token_ids)
    if cached is not None and not 0 <= cached <= most:
        raise broken(engine, f"gave {cached} cached_tokens of a prompt of {most}")


def check_prompt_logprobs(engine: str, request: TokenRequest, finish: TokenFinish | None) -> None:
    """If they were asked for, one entry a prompt token, the first None."""
    if request.prompt_logprobs is None:
        return
    entries = None if finish is None else finish.prompt_logprobs
    length = len(request.prompt_token_ids)
    if entries is None or len(entries) != length or entries[0] is not None:
        raise broken(engine, f"did not give prompt_logprobs for {length} prompt tokens, the first None")


def check_terminator(
    engine: str, request: TokenRequest, token_ids: Sequence[int], finish: TokenFinish | None, total: int
) -> None:
    """A delta that has a terminating token: it is the last one, ends the sequence, and comes not before its time."""
    position = next(index for index, token in enumerate(token_ids) if token in request.terminators)
    before = total - len(token_ids) + position
    if before + 1 < total or finish is None or finish.reason == "length":
        raise broken(engine, f"did not end with reason 'stop' at the terminating token {token_ids[position]}")
    if before < request.min_tokens:
        raise broken(engine, f"ended after {before} tokens where min_tokens is {request.min_tokens}")


def check_logprobs(
    engine: str, request: TokenRequest, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
) -> None:
    """One entry for each token if they were asked for, else none."""
    for entry in logprobs or ():  # by hand: for every token, `check_types` is a cost
        odd = type(entry.token_id) is not int or type(entry.logprob) is not float
        for token_id, logprob in entry.top.items():
            odd = odd or type(token_id) is not int or type(logprob) is not float
        if odd:
            check_types(engine, logprobs, _LOGPROBS)
    wanted = list(token_ids) if request.logprobs is not None else []
    given = [entry.token_id for entry in logprobs or ()]
    if given != wanted:
        raise broken(engine, f"gave log-probabilities of the tokens {given} where those of {wanted} were due")
