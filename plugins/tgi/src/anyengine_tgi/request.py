"""From one of our requests to TGI's: pure functions."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidRequest

from anyengine_tgi.expressions import check_regex
from anyengine_tgi.precision import check_precision

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from anyengine.request import Structured

__all__ = ["check", "grammar", "parameters"]

#: TGI takes whole numbers up to 64 bits, and its specification rules 0 out: it becomes the number behind the last seed.
_FOR_SEED_0 = 2**63

#: Characters that mean something in a regular expression.
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def parameters(
    request: TokenRequest, *, vocabulary: int, max_new_tokens: int | None = None, piece: int = 0
) -> dict[str, Any]:
    """``parameters`` of ``/generate`` and ``/generate_stream``.

    Args:
        request: checked already.
        vocabulary: tokens that there are.
        max_new_tokens: of this piece of it; by default all that it asks for.
        piece: its number.

    Neutral values are left out: TGI refuses a temperature of 0, a ``top_p`` of 1, a ``top_k`` of 0. What makes it
    sample is ``do_sample``; a temperature of 1 alone does not.
    """
    sampling = request.sampling
    values: dict[str, Any] = {
        "max_new_tokens": request.max_tokens if max_new_tokens is None else max_new_tokens,
        "details": True,
        "do_sample": not sampling.greedy,
    }
    if not sampling.greedy:
        if sampling.temperature != 1:
            values["temperature"] = sampling.temperature
        if sampling.top_p < 1:
            values["top_p"] = sampling.top_p
        # Beyond the vocabulary TGI reads past the end of its logits, which the GPU does not survive.
        if 0 < sampling.top_k < vocabulary:
            values["top_k"] = sampling.top_k
        if sampling.seed is not None:
            values["seed"] = _seed(sampling.seed, piece)
    if sampling.repetition_penalty != 1:
        values["repetition_penalty"] = sampling.repetition_penalty
    if request.logprobs:
        values["top_n_tokens"] = request.logprobs
    if request.structured is not None:
        values["grammar"] = grammar(request.structured)
    if request.lora is not None:
        values["adapter_id"] = request.lora
    return values


def _seed(seed: int, piece: int) -> int:
    """Of a piece: random numbers that no other piece has, nor another seed of a caller's (those are below 2**63)."""
    if piece == 0:
        return seed or _FOR_SEED_0
    digest = blake2b(b"%d %d" % (seed, piece), digest_size=8).digest()
    return _FOR_SEED_0 + 1 + int.from_bytes(digest, "big") % (2**63 - 1)


def grammar(wanted: Structured) -> dict[str, Any]:
    """A constraint; a choice is a regular expression there."""
    if wanted.choice is not None:
        # The longest first: an automaton does not care, a reader of the server's log does.
        return {"type": "regex", "value": "(" + "|".join(map(_literal, wanted.choice)) + ")"}
    return {"type": "regex", "value": wanted.regex or ""}


def _literal(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


def check(request: TokenRequest, *, max_input_tokens: int, dtype: str | None) -> None:
    """Refuse what TGI would alter or misread.

    Args:
        request: within the declared capabilities.
        max_input_tokens: the server's bound of a prompt.
        dtype: that it computes in, where that is known.

    Raises:
        UnsupportedParameter, InvalidRequest: names the field.
    """
    sampling, length = request.sampling, len(request.prompt_token_ids)
    check_precision(sampling, dtype)
    if length > max_input_tokens:
        raise InvalidRequest(
            f"prompt: has {length} tokens; the server takes at most {max_input_tokens}", field="prompt"
        )
    if request.structured is not None and request.structured.regex is not None:
        check_regex(request.structured.regex)
