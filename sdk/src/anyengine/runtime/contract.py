"""Holding a backend to its contract: what it breaks becomes a :class:`~anyengine.errors.PluginError` that says so.

The caller never gets output that the contract rules out, and the author of the plugin learns what to mend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.errors import AnyEngineError, PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.backend import TokenDelta, TokenFinish, TokenRequest
    from anyengine.outputs import TokenLogprobs

__all__ = ["broken", "cause", "check_finish", "check_logprobs", "check_prompt_logprobs", "check_terminator", "mapped"]

_REASONS = frozenset({"stop", "length", "abort"})


def mapped(error: Exception, engine: str) -> AnyEngineError:
    """Our own errors as they are; anything else is a plugin that did not map it."""
    if isinstance(error, AnyEngineError):
        error.engine = error.engine or engine
        return error
    message = f"{engine} raised {type(error).__name__}, which its plugin does not map: {error}"
    return PluginError(message, engine=engine)


def cause(error: Exception) -> BaseException | None:
    """What a mapped error is chained to."""
    return error.__cause__ if isinstance(error, AnyEngineError) else error


def broken(engine: str, what: str) -> PluginError:
    """The error for a backend that does what no backend may."""
    return PluginError(f"{engine} {what}, which breaks the contract of a backend", engine=engine)


def check_finish(engine: str, request: TokenRequest, delta: TokenDelta, finish: TokenFinish, total: int) -> None:
    """The end of a sequence: a known reason, and the right one for its tokens.

    Args:
        engine: its name.
        request: what was asked for.
        delta: the last one.
        finish: its finish.
        total: tokens of the sequence with it.
    """
    last = delta.token_ids[-1] if delta.token_ids else None
    if finish.reason not in _REASONS:
        raise broken(engine, f"ended a sequence with the reason {finish.reason!r}")
    if finish.reason == "stop" and last not in request.terminators:
        known = sorted(request.terminators)
        raise broken(engine, f"ended a sequence with reason 'stop', but its last token ({last}) is none of {known}")
    if finish.reason == "length" and total < request.max_tokens:
        raise broken(engine, f"ended with reason 'length' after {total} of {request.max_tokens} tokens")
    if finish.reason != "abort":
        check_prompt_logprobs(engine, request, finish)


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
    wanted = list(token_ids) if request.logprobs is not None else []
    given = [entry.token_id for entry in logprobs or ()]
    if given != wanted:
        raise broken(engine, f"gave log-probabilities of the tokens {given} where those of {wanted} were due")
