"""From one of our requests to vLLM's: pure functions over the classes of a :class:`~anyengine_vllm.library.Library`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from anyengine.backend.seeds import in_32_bits
from anyengine.errors import InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Collection

    from anyengine.backend import TokenRequest
    from anyengine.request import Structured

    from anyengine_vllm.library import Library

__all__ = ["HIGHEST_TEMPERATURE", "LOWEST_TEMPERATURE", "check", "check_tables", "prompt", "sampling_params"]

#: vLLM raises what lies between 0 and the first of these, and refuses what lies above the second.
LOWEST_TEMPERATURE = 0.01
HIGHEST_TEMPERATURE = 2.0

#: White space in JSON: a space or a line end with indentation after a comma, a space after a colon. Both separators are
#: regular expressions. With vLLM's own setting any number of spaces may stand anywhere, and a small model may never
#: come to the next part.
_WHITESPACE = {"whitespace_flexible": False, "item_separator": r",( |\n {0,16})?", "key_separator": ": ?"}

#: Of a grammar in Lark's notation: strings, regular expressions and comments as they are, and ranges with both ends.
_LARK = re.compile(r'"(?:\\.|[^"\\])*"|/(?!/)(?:\\.|[^/\\])+/|//[^\n]*|~\s*(\d+)\s*\.\.\s*(\d+)')

#: Sizes of the sampler's tables in vLLM's second model runner: field → most entries.
_TABLES = {"sampling.allowed_token_ids": 1024, "sampling.logit_bias": 1024, "stop_token_ids": 128}
_MOST_BAD_WORDS = 128
_MOST_BAD_WORD_TOKENS = 1024


def prompt(request: TokenRequest) -> dict[str, Any]:
    """The prompt as vLLM's own input type (``TokensInput``): ids, so nothing is tokenised or rendered."""
    tokens: dict[str, Any] = {"type": "token", "prompt_token_ids": request.prompt_token_ids}
    if request.cache_salt is not None:
        tokens["cache_salt"] = request.cache_salt
    return tokens


def sampling_params(library: Library, request: TokenRequest, *, streaming: bool) -> Any:
    """Everything else that is asked for, as vLLM's ``SamplingParams``.

    Every terminator travels as a stop token and vLLM is told of no end-of-sequence token: so the last token says why
    a sequence ended, and ``min_tokens`` holds all of them back.
    """
    wanted = request.sampling
    bad_words = [list(ids) for ids in request.bad_word_ids]
    return library.sampling_params(
        n=1,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        repetition_penalty=wanted.repetition_penalty,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        # torch's generator for CPUs looks at the lower 32 bits only.
        seed=None if wanted.seed is None else in_32_bits(wanted.seed),
        logit_bias=None if wanted.logit_bias is None else dict(wanted.logit_bias),
        allowed_token_ids=None if wanted.allowed_token_ids is None else list(wanted.allowed_token_ids),
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        stop_token_ids=sorted(request.terminators),
        ignore_eos=True,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        structured_outputs=None if request.structured is None else structured(library, request.structured),
        detokenize=False,
        skip_special_tokens=False,
        output_kind=library.delta if streaming else library.final_only,
        skip_clone=True,
        _bad_words_token_ids=bad_words or None,
    )


def structured(library: Library, wanted: Structured) -> Any:
    """A constraint; the ``guidance`` backend, which the engine is loaded with, takes Lark grammars as they are."""
    if wanted.json_schema is False:
        return library.structured(json="false")
    if wanted.json_schema is not None:
        return library.structured(json=json.dumps(_bounded_whitespace(wanted.json_schema)))
    if wanted.choice is not None:
        return library.structured(choice=list(wanted.choice))
    if wanted.regex is not None:
        return library.structured(regex=wanted.regex)
    return library.structured(grammar=_spaced_ranges(wanted.grammar or ""))


def _spaced_ranges(grammar: str) -> str:
    """The grammar with room around the dots of ``~1..3``, which older compilers read as the number ``1.``."""
    return _LARK.sub(lambda found: f"~{found[1]} .. {found[2]}" if found[1] else found[0], grammar)


def _bounded_whitespace(schema: dict[str, Any] | Literal[True]) -> dict[str, Any]:
    """The schema with the compiler's own option for what may stand between the parts of a document."""
    return {"x-guidance": _WHITESPACE, **({} if schema is True else schema)}


def check(request: TokenRequest) -> None:
    """Refuse the values that vLLM would alter, and those that leave nothing to draw.

    Raises:
        UnsupportedParameter: vLLM has another range, or cannot tell whether a token is left.
        InvalidRequest: no token can ever be drawn.
    """
    sampling = request.sampling
    if 0 < sampling.temperature < LOWEST_TEMPERATURE or sampling.temperature > HIGHEST_TEMPERATURE:
        raise UnsupportedParameter(
            f"sampling.temperature: {sampling.temperature} is outside what vLLM takes as it is: 0, or "
            f"{LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}",
            field="sampling.temperature",
        )
    if sampling.allowed_token_ids is not None:
        _check_something_is_allowed(request, set(sampling.allowed_token_ids))


def _check_something_is_allowed(request: TokenRequest, allowed: set[int]) -> None:
    """With every logit at minus infinity vLLM draws a token that was ruled out; so that may not come about."""
    never = {ids[0] for ids in request.bad_word_ids if len(ids) == 1}
    if request.min_tokens:
        never |= request.terminators
    field = "sampling.allowed_token_ids"
    if allowed <= never:
        raise InvalidRequest(f"{field}: all of them are ruled out by bad_words or min_tokens", field=field)
    if allowed <= never | {ids[-1] for ids in request.bad_word_ids}:
        raise UnsupportedParameter(
            f"{field}: each of them may end one of bad_words; where all do, vLLM does not notice that nothing is left",
            field=field,
        )


def check_tables(request: TokenRequest) -> None:
    """Refuse what does not fit into the fixed tables of vLLM's second model runner.

    Raises:
        UnsupportedParameter: names the field and the size.
    """
    sampling = request.sampling
    given: dict[str, Collection[int]] = {
        "sampling.allowed_token_ids": sampling.allowed_token_ids or (),
        "sampling.logit_bias": sampling.logit_bias or (),
        "stop_token_ids": request.terminators if request.min_tokens else (),
    }
    for field, entries in given.items():
        if len(entries) > _TABLES[field]:
            raise UnsupportedParameter(
                f"{field}: vLLM takes at most {_TABLES[field]} of them on this device, not {len(entries)}", field=field
            )
    tokens = sum(map(len, request.bad_word_ids))
    if len(request.bad_word_ids) > _MOST_BAD_WORDS or tokens > _MOST_BAD_WORD_TOKENS:
        raise UnsupportedParameter(
            f"sampling.bad_words: vLLM takes at most {_MOST_BAD_WORDS} spellings of {_MOST_BAD_WORD_TOKENS} tokens "
            f"together on this device, not {len(request.bad_word_ids)} of {tokens}",
            field="sampling.bad_words",
        )
