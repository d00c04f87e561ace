"""From one of our requests to LMDeploy's: pure functions over its classes.

Requests go to the handles of LMDeploy's engines, beneath ``AsyncEngine.generate``: that would add end-of-sequence
tokens of the model's ``generation_config.json``, reset penalties and temperature for greedy requests, and take the
terminating token away. A handle takes a ``GenerationConfig`` as it is, and its output is what was generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend.seeds import in_32_bits
from anyengine.errors import InvalidRequest, UnsupportedParameter

from anyengine_lmdeploy.hooks import logits_hook

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

    from anyengine_lmdeploy.library import Library
    from anyengine_lmdeploy.options import BackendName

__all__ = ["MAX_LOGITS_BYTES", "check", "generation_config", "scoring_config"]

#: TurboMind adds a millionth to the temperature before it divides; below this that shows.
LOWEST_TEMPERATURE = 0.01
#: LMDeploy refuses more.
HIGHEST_TEMPERATURE = 2.0

#: TurboMind returns logits, for log-probabilities, in one tensor for the whole request, made when it begins.
MAX_LOGITS_BYTES = 2**30


def generation_config(
    library: Library, request: TokenRequest, backend: BackendName, response_format: dict[str, Any] | None
) -> Any:
    """Everything that is asked for beside the prompt, as LMDeploy's ``GenerationConfig``.

    Every terminator travels as a stop token, and ``ignore_eos`` is never used: on the PyTorch backend that rules the
    caller's stop tokens out, on TurboMind it lets them pass.
    """
    wanted = request.sampling
    values: dict[str, Any] = {
        "max_new_tokens": request.max_tokens,
        # One token to draw from: greedy on both, and neither has another way that keeps penalties.
        "top_k": 1 if wanted.greedy else wanted.top_k,
        "top_p": 1.0 if wanted.greedy else wanted.top_p,
        "min_p": 0.0 if wanted.greedy else wanted.min_p,
        "temperature": 1.0 if wanted.greedy else wanted.temperature,
        "do_sample": not wanted.greedy,
        "repetition_penalty": wanted.repetition_penalty,
        "random_seed": _seed(wanted.seed, backend),
        "stop_token_ids": sorted(request.terminators) or None,
        "response_format": response_format,
    }
    if backend == "turbomind":
        values["output_logits"] = _logits(request)
    else:
        if request.logprobs is not None:
            # 0 would be none at all.
            values["logprobs"] = max(request.logprobs, 1)
        hook = logits_hook(library.torch, wanted)
        values["logits_processors"] = None if hook is None else [hook]
    return library.generation_config(**values)


def scoring_config(library: Library, logprobs: int) -> Any:
    """For log-probabilities of a text that is there, on the PyTorch backend: nothing is generated."""
    return library.generation_config(max_new_tokens=0, logprobs=logprobs, logprob_start_len=0, top_k=1)


def _seed(seed: int | None, backend: BackendName) -> int | None:
    if seed is None or backend == "turbomind":
        return seed
    # Of a larger one the engine in PyTorch looks at the lower 32 bits only.
    return in_32_bits(seed)


def _logits(request: TokenRequest) -> str | None:
    """Which logits TurboMind returns: its own log-probabilities are of what sampling leaves, not the model's."""
    if request.prompt_logprobs is not None:
        return "all"
    return None if request.logprobs is None else "generation"


def check(request: TokenRequest, backend: BackendName, *, vocab_size: int, greedy_only: bool) -> None:
    """Refuse the values that LMDeploy would alter, and those that it has no room for.

    Raises:
        UnsupportedParameter, InvalidRequest: names the field.
    """
    sampling = request.sampling
    temperature = sampling.temperature
    if not sampling.greedy and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise UnsupportedParameter(
            f"sampling.temperature: {temperature} is outside what LMDeploy takes as it is: 0, or "
            f"{LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}",
            field="sampling.temperature",
        )
    if greedy_only and not sampling.greedy:
        raise UnsupportedParameter(
            "sampling.temperature: with speculative this package takes 0 only; load without it to sample",
            field="sampling.temperature",
        )
    if backend == "turbomind" and (request.logprobs is not None or request.prompt_logprobs is not None):
        _check_logits(request, vocab_size)
    allowed = sampling.allowed_token_ids
    if allowed is not None and request.structured is not None:
        raise InvalidRequest("sampling.allowed_token_ids: not with structured", field="sampling.allowed_token_ids")


def _check_logits(request: TokenRequest, vocab_size: int) -> None:
    rows = request.max_tokens
    if request.prompt_logprobs is not None:
        rows += len(request.prompt_token_ids)
    most = MAX_LOGITS_BYTES // (4 * vocab_size)
    if rows > most:
        field = "logprobs" if request.prompt_logprobs is None else "prompt_logprobs"
        raise UnsupportedParameter(
            f"{field}: TurboMind would return {rows} rows of {vocab_size} logits; at most {most} tokens have room "
            "(lower max_tokens, or load with native.backend='pytorch')",
            field=field,
        )
