"""From one of our requests to TensorRT-LLM's: functions of its classes, as :class:`Library` has them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from anyengine.request import Structured

    from anyengine_trtllm.library import Library
    from anyengine_trtllm.options import Options

__all__ = ["HIGHEST_TOP_K", "LOWEST_TEMPERATURE", "check", "end_id", "sampling_params", "structured"]

#: TensorRT-LLM divides by the temperature plus a millionth; above this that changes nothing that could be seen.
LOWEST_TEMPERATURE = 0.01

#: The sampler in C++ keeps at most this many tokens, and takes a larger number for it.
HIGHEST_TOP_K = 1024

#: Added to the logit of a token that may not be drawn. Its probability is exactly 0, as with minus infinity, which some
#: of the sampler's kernels would take for a token that is not there.
_NEVER = -1e30

#: No token has this id: the engine knows no end of its own.
_NO_END = -1

#: White space in JSON: a space or a line end with indentation after a comma, a space after a colon. Unbounded, a small
#: model may never come to the next part.
_WHITESPACE = {"whitespace_flexible": False, "item_separator": r",( |\n {0,16})?", "key_separator": ": ?"}


def end_id(request: TokenRequest) -> int | None:
    """The one token that the engine itself must know as the end, for it to be held back; None where nothing is.

    Else every terminator travels as a stop token, so that the last token tells why a sequence ended.
    """
    return next(iter(request.terminators)) if request.min_tokens and request.terminators else None


def sampling_params(
    library: Library, request: TokenRequest, options: Options, *, vocab_size: int, logits: bool = False
) -> Any:
    """Everything that is asked for, as TensorRT-LLM's ``SamplingParams``.

    Args:
        library: its classes.
        request: looked over by :func:`check`.
        options: which sampler there is.
        vocab_size: length of the bias.
        logits: return those of the prompt, whatever the request says: to score it.
    """
    wanted, held_back = request.sampling, end_id(request)
    values: dict[str, Any] = {
        # Where an end is given TensorRT-LLM looks none up: not in the tokenizer, nor in a generation config.
        "end_id": _NO_END if held_back is None else held_back,
        "pad_id": 0,
        "stop_token_ids": sorted(request.terminators) if held_back is None else None,
        "include_stop_str_in_output": True,
        "ignore_eos": False,
        "max_tokens": request.max_tokens,
        # None would be 1: a first token that may not end the text.
        "min_tokens": 0 if held_back is None else request.min_tokens,
        "n": 1,
        "detokenize": False,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "return_generation_logits": request.logprobs is not None,
        "return_context_logits": logits or request.prompt_logprobs is not None,
        "guided_decoding": None if request.structured is None else structured(library, request.structured),
        **_drawing(request),
    }
    if not options.torch_sampler:
        values |= _in_cpp(request)
    bias = _bias(request, vocab_size)
    if bias is not None:
        values["embedding_bias"] = library.torch.tensor(bias, dtype=library.torch.float32)
    params = library.sampling_params(**values)
    if request.bad_word_ids and not options.torch_sampler:
        # As token ids, worked out by the SDK. The texts, which TensorRT-LLM would encode, say that there are some.
        params.bad = list(wanted.bad_words)
        params._bad_word_ids = [list(ids) for ids in request.bad_word_ids]  # noqa: SLF001 the field it reads
    return params


def _drawing(request: TokenRequest) -> dict[str, Any]:
    """Temperature, ``top_k`` and ``top_p``; with none of them given TensorRT-LLM would be greedy."""
    wanted = request.sampling
    if wanted.greedy:
        # Not temperature 0: penalties, which come after the division, would count for nothing.
        return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    return {"temperature": float(wanted.temperature), "top_k": wanted.top_k, "top_p": float(wanted.top_p)}


def _in_cpp(request: TokenRequest) -> dict[str, Any]:
    """What the sampler in C++ alone honours.

    It subtracts penalties after it has divided by the temperature, where ours come before: so they are divided too. It
    counts the prompt's tokens unless it is told not to; the repetition penalty counts them all the same.
    """
    wanted = request.sampling
    scale = 1.0 if wanted.greedy else wanted.temperature
    return {
        "min_p": float(wanted.min_p),
        "repetition_penalty": float(wanted.repetition_penalty),
        "presence_penalty": wanted.presence_penalty / scale,
        "frequency_penalty": wanted.frequency_penalty / scale,
        "prompt_ignore_length": len(request.prompt_token_ids),
        "seed": wanted.seed,
    }


def _bias(request: TokenRequest, vocab_size: int) -> list[float] | None:
    """What is added to each token's logit."""
    wanted = request.sampling
    if wanted.logit_bias is None and wanted.allowed_token_ids is None:
        return None
    bias = [0.0] * vocab_size
    if wanted.allowed_token_ids is not None:
        bias = [_NEVER] * vocab_size
        for token in wanted.allowed_token_ids:
            bias[token] = 0.0
    for token, value in (wanted.logit_bias or {}).items():
        bias[token] += value
    return bias


def structured(library: Library, wanted: Structured) -> Any:
    """A constraint; ``llguidance``, which the PyTorch backend is loaded with, takes Lark grammars as they are."""
    if wanted.json_schema is not None:
        schema = wanted.json_schema
        # Of the two schemas that are no objects, true accepts everything, as {} does, and false nothing.
        fields: dict[str, Any] = {"not": {}} if schema is False else {} if schema is True else schema
        return library.guided(json=json.dumps({"x-guidance": _WHITESPACE, **fields}))
    if wanted.choice is not None:
        return library.guided(regex="|".join(re.escape(choice) for choice in wanted.choice))
    if wanted.regex is not None:
        return library.guided(regex=wanted.regex)
    return library.guided(grammar=wanted.grammar)


def check(request: TokenRequest, options: Options, *, longest_prompt: int | None) -> None:
    """Refuse the values that TensorRT-LLM would alter, and what it cannot express.

    Args:
        request: within the declared capabilities.
        options: which sampler there is.
        longest_prompt: tokens that fit in a step, where prompts are not cut into pieces.

    Raises:
        UnsupportedParameter: TensorRT-LLM has another range.
        InvalidRequest: no token can ever be drawn, or the prompt does not fit in a step.
    """
    sampling = request.sampling
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        raise _unsupported("sampling.temperature", f"{sampling.temperature} is below {LOWEST_TEMPERATURE}, and not 0")
    if sampling.top_k > HIGHEST_TOP_K and not options.torch_sampler:
        raise _unsupported("sampling.top_k", f"TensorRT-LLM keeps at most {HIGHEST_TOP_K} tokens; 0 keeps all")
    if options.greedy_only and not sampling.greedy:
        raise _unsupported(
            "sampling.temperature",
            "with this speculation TensorRT-LLM keeps the model's distribution at temperature 0 only; load without "
            "speculative to sample",
        )
    if request.min_tokens and len(request.terminators) > 1:
        raise _unsupported(
            "min_tokens", f"TensorRT-LLM holds one end token back, and this request has {len(request.terminators)}"
        )
    if longest_prompt is not None and len(request.prompt_token_ids) > longest_prompt:
        raise InvalidRequest(
            f"prompt: has {len(request.prompt_token_ids)} tokens; without scheduling.chunked_prefill at most "
            f"{longest_prompt} (scheduling.max_num_batched_tokens) can be computed",
            field="prompt",
        )
    _check_bad_words(request)
    if sampling.allowed_token_ids is not None:
        _check_something_is_allowed(request, set(sampling.allowed_token_ids))


def _unsupported(field: str, message: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{field}: {message}", field=field)


def _check_bad_words(request: TokenRequest) -> None:
    """TensorRT-LLM looks for the beginning of a bad word in the prompt too, where ours must not."""
    prompt = request.prompt_token_ids
    for word in request.bad_word_ids:
        if any(prompt[-length:] == list(word[:length]) for length in range(1, len(word))):
            raise _unsupported(
                "sampling.bad_words",
                "the prompt ends with the beginning of one of them, and TensorRT-LLM would not let it be ended",
            )


def _check_something_is_allowed(request: TokenRequest, allowed: set[int]) -> None:
    """With everything ruled out TensorRT-LLM draws all the same; so that may not come about."""
    never = {ids[0] for ids in request.bad_word_ids if len(ids) == 1}
    if request.min_tokens:
        never |= request.terminators
    field = "sampling.allowed_token_ids"
    if allowed <= never:
        raise InvalidRequest(f"{field}: all of them are ruled out by bad_words or min_tokens", field=field)
    if allowed <= never | {ids[-1] for ids in request.bad_word_ids}:
        raise _unsupported(
            field, "each of them may end one of bad_words; where all do, TensorRT-LLM does not notice that none is left"
        )
