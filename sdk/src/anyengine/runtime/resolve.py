"""From a checked request to the token request that a backend gets."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine.backend.model_config import text_config
from anyengine.backend.types import TokenRequest
from anyengine.errors import InvalidRequest, ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from anyengine.backend import BackendInfo
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.request import GenerateRequest
    from anyengine.text.tokenizer import TextTokenizer

__all__ = ["how_to_fit", "numbered", "resolve"]


def resolve(
    engine: str,
    config: EngineConfig,
    info: BackendInfo,
    model: ModelFiles,
    tokenizer: TextTokenizer,
    request: GenerateRequest,
    text: str | None,
    token_ids: list[int],
    id_: str,
) -> TokenRequest:
    """Everything that depends on the model: length, end-of-sequence tokens, seed, banned words.

    Args:
        engine: its name.
        config: how it was loaded.
        info: what was loaded.
        model: the checkpoint.
        tokenizer: the model's.
        request: checked against the capabilities.
        text: the prompt as text, if there is one.
        token_ids: the prompt as tokens.
        id_: of the token request.

    Raises:
        InvalidRequest: it does not fit into the context.
        UnsupportedParameter: the engine takes text only.
    """
    _check_length(engine, config, info, model, request, token_ids)
    if text is None and not info.capabilities.token_prompts:
        raise UnsupportedParameter(f"prompt: {engine} takes text only, not token ids", engine=engine, field="prompt")
    sampling = request.sampling
    if sampling.seed is None and not sampling.greedy and info.capabilities.unseeded == "fixed":
        sampling = sampling.model_copy(update={"seed": secrets.randbits(62)})
    return TokenRequest(
        id=id_,
        prompt_token_ids=token_ids,
        prompt_text=text,
        sampling=sampling,
        max_tokens=request.max_tokens or info.max_model_len - len(token_ids),
        min_tokens=request.min_tokens,
        eos_token_ids=frozenset() if request.ignore_eos else model.eos_token_ids,
        stop_token_ids=frozenset(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        bad_word_ids=tuple(map(tuple, tokenizer.bad_word_sequences(sampling.bad_words))) if sampling.bad_words else (),
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        structured=request.structured,
        lora=request.lora,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def _check_length(
    engine: str,
    config: EngineConfig,
    info: BackendInfo,
    model: ModelFiles,
    request: GenerateRequest,
    token_ids: list[int],
) -> None:
    room = info.max_model_len - len(token_ids)
    if not token_ids:
        raise InvalidRequest("prompt: the tokenizer makes no token of it", engine=engine, field="prompt")
    if room < 1:
        raise InvalidRequest(
            f"prompt: has {len(token_ids)} tokens; the context holds {info.max_model_len}, "
            f"and one must be left for the answer; {how_to_fit(config, info, model)}",
            engine=engine,
            field="prompt",
        )
    if request.max_tokens is not None and request.max_tokens > room:
        raise InvalidRequest(
            f"max_tokens: {request.max_tokens} do not fit; the context of {info.max_model_len} tokens leaves "
            f"{room} after a prompt of {len(token_ids)}; leave max_tokens out to use the rest",
            engine=engine,
            field="max_tokens",
        )
    if request.min_tokens > room:
        raise InvalidRequest(
            f"min_tokens: {request.min_tokens} do not fit; the context of {info.max_model_len} tokens leaves "
            f"{room} after a prompt of {len(token_ids)}",
            engine=engine,
            field="min_tokens",
        )


def how_to_fit(config: EngineConfig, info: BackendInfo, model: ModelFiles) -> str:
    """What to do about a prompt that is longer than the context: a larger one only where the caller made it small."""
    chosen = {"max_model_len": config.max_model_len, "kv_cache.capacity_tokens": config.kv_cache.capacity_tokens}
    limits = [name for name, value in chosen.items() if value is not None and value <= info.max_model_len]
    own: Any = None
    with suppress(ModelNotFound):  # an engine may load what we cannot make out
        own = text_config(model.config).get("max_position_embeddings")
    known = isinstance(own, int)
    if not limits or (known and own <= info.max_model_len):
        return "shorten it"
    return f"shorten it, or load with a larger {' and '.join(limits)}" + (f" (the model has {own})" if known else "")


def numbered(tokens: TokenRequest, name: str, index: int, n: int) -> TokenRequest:
    """The request of one of ``n`` sequences: its own id, and the seed plus its index."""
    if n == 1:
        return replace(tokens, id=name)
    sampling = tokens.sampling
    if sampling.seed is not None:
        sampling = sampling.model_copy(update={"seed": (sampling.seed + index) % 2**63})
    return replace(tokens, id=f"{name}.{index}", sampling=sampling)
