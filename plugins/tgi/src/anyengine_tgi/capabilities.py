"""What Text Generation Inference 3.3 can do, in general and once it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.capabilities import Capabilities, Conflict
from msgspec.structs import replace

from anyengine_tgi import quantize

if TYPE_CHECKING:
    from anyengine.config import EngineConfig

__all__ = ["MAX_LOGPROBS", "QUANTIZATION", "declared", "narrowed"]

#: Alternatives a token (``--max-top-n-tokens``).
MAX_LOGPROBS = 5

CONFIG = frozenset({
    "devices",
    "execution",
    "kv_cache.dtype",
    "kv_cache.gpu_memory_fraction",
    "kv_cache.prefix_caching",
    "lora",
    "max_model_len",
    "parallel.tensor",
    "scheduling.chunked_prefill",
    "scheduling.max_num_batched_tokens",
    "scheduling.max_num_seqs",
    "trust_remote_code",
})  # fmt: skip

QUANTIZATION = frozenset({
    "awq",
    "bitsandbytes",
    "bitsandbytes-fp4",
    "bitsandbytes-nf4",
    "compressed-tensors",
    "eetq",
    "exl2",
    "fp8",
    "gptq",
    "marlin",
})  # fmt: skip

#: TGI works the places of a draft out with the state before it: what depends on the tokens in between is wrong there.
CONFLICTS = (
    Conflict(
        "config.speculative",
        "sampling.repetition_penalty",
        "TGI leaves the accepted tokens of a draft out when it penalises those after them",
    ),
    Conflict(
        "config.speculative",
        "request.structured",
        "TGI masks every place of a draft with the constraint's state before it",
    ),
)


def declared() -> Capabilities:
    """Of TGI 3.3 in general. Everything is unproven: nothing of it was ever run on the real engine."""
    every = Capabilities(
        config=CONFIG,
        native=True,
        # No min_p, bias, banned or allowed tokens, presence penalty; its frequency penalty is divided by the length.
        sampling=frozenset({"repetition_penalty", "seed", "temperature", "top_k", "top_p"}),
        # Stop tokens are watched for here, and the request is ended at one. There is no min_tokens, ignore_eos,
        # priority or cache_salt.
        request=frozenset({"lora", "stop_token_ids"}),
        logprobs="neutral-only",
        prompt_logprobs="raw",
        max_logprobs=MAX_LOGPROBS,
        # Of a prompt TGI gives its own tokens only.
        max_prompt_logprobs=0,
        score=True,
        # Of a JSON Schema it drops what its regular expression cannot say (minimum, maximum, …) without a word.
        structured=frozenset({"choice", "regex"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        devices=frozenset({"cuda"}),
        quantization=QUANTIZATION,
        quantize=quantize.SCHEMES if quantize.installed() else frozenset(),
        speculative=frozenset({"ngram"}),
        unseeded="varies",
        conflicts=CONFLICTS,
    )
    listed = (
        "config",
        "sampling",
        "request",
        "structured",
        "dtypes",
        "devices",
        "quantization",
        "quantize",
        "speculative",
    )
    names = frozenset[str]().union(*(getattr(every, field) for field in listed))
    return replace(every, unproven=names | {"logprobs", "native", "prompt_logprobs", "score"})


def narrowed(config: EngineConfig, *, attached: bool, prefill_logprobs: bool, grammars: bool) -> Capabilities:
    """Of one loaded engine.

    Args:
        config: what it was loaded with.
        attached: to a server that somebody else started.
        prefill_logprobs: whether the server gives log-probabilities of prompts.
        grammars: whether it takes constraints.
    """
    every = declared()
    changes: dict[str, object] = {}
    if config.lora is None and not attached:
        changes["request"] = every.request - {"lora"}
    if not prefill_logprobs:
        changes |= {"prompt_logprobs": "none", "score": False}
    if not grammars:
        changes["structured"] = frozenset[str]()
    if attached:
        changes |= {
            "config": frozenset({"max_model_len", "scheduling.max_num_seqs"}),
            "dtypes": frozenset[str](),
            "devices": frozenset[str](),
            "quantization": frozenset[str](),
            "speculative": frozenset[str](),
            "request": every.request - {"lora"},
        }
    return replace(every, **changes)
