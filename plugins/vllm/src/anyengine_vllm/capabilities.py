"""What vLLM can do, in general and once it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.capabilities import Capabilities, Conflict
from anyengine.request import SamplingParams
from msgspec.structs import replace

from anyengine_vllm import quantize, versions

if TYPE_CHECKING:
    from anyengine.config import EngineConfig

__all__ = ["DTYPES", "MAX_LOGPROBS", "declared", "narrowed"]

#: The SDK's own bound; vLLM takes any it is loaded with.
MAX_LOGPROBS = 1000

#: What vLLM computes in.
DTYPES = frozenset({"bfloat16", "float16", "float32"})

CONFIG = frozenset({
    "devices",
    "execution",
    "kv_cache.block_size",
    "kv_cache.capacity_tokens",
    "kv_cache.dtype",
    "kv_cache.gpu_memory_fraction",
    "kv_cache.prefix_caching",
    "lora",
    "max_model_len",
    "parallel.data",
    "parallel.expert",
    "parallel.pipeline",
    "parallel.tensor",
    "scheduling.chunked_prefill",
    "scheduling.max_num_batched_tokens",
    "scheduling.max_num_seqs",
    "seed",
    "task",
    "trust_remote_code",
})  # fmt: skip

#: Pairs that vLLM computes in another order than ours, or not together. The order of vLLM is: allowed tokens, bad
#: words, ``min_tokens``, bias, penalties, temperature, ``min_p``, ``top_k``, ``top_p``; ours has the penalties first
#: and ``min_p`` last. Additive steps and bans commute, and so do ``min_p`` and ``top_k`` (each keeps a beginning of the
#: sorted tokens, whatever the other left); what does not commute stands here.
CONFLICTS = (
    Conflict(
        "sampling.logit_bias",
        "sampling.repetition_penalty",
        "vLLM adds the bias before it multiplies, here it is added after",
    ),
    Conflict(
        "sampling.min_p",
        "sampling.top_p",
        "vLLM applies min_p first, and top_p to what that leaves; here it is the other way round",
    ),
    Conflict(
        "request.structured",
        "request.ignore_eos",
        "a complete structure can only be followed by an end-of-sequence token",
    ),
    Conflict(
        "request.structured",
        "request.min_tokens",
        "where the structure is complete too early, vLLM lets the end-of-sequence token through and goes on after it",
    ),
    Conflict(
        "request.structured",
        "sampling.allowed_token_ids",
        "where the two leave no token, vLLM draws one that neither allows",
    ),
    Conflict(
        "request.structured",
        "sampling.bad_words",
        "where the two leave no token, vLLM draws one that neither allows",
    ),
    Conflict("config.speculative", "sampling.min_p", "vLLM does not take min_p with speculative decoding"),
    Conflict("config.speculative", "sampling.logit_bias", "vLLM does not take logit_bias with speculative decoding"),
    Conflict(
        "config.speculative",
        "request.min_tokens",
        "vLLM holds terminators back at the token after an accepted draft too, where min_tokens are there already",
    ),
)

#: Mapped, and never run by the authors of this package: see README.md.
UNPROVEN = frozenset({
    "bitsandbytes",
    "devices",
    "eagle",
    "eagle3",
    "gptq",
    "mtp",
    "parallel.data",
    "parallel.expert",
    "parallel.pipeline",
    "trust_remote_code",
})  # fmt: skip


def declared() -> Capabilities:
    """Of the vLLM that is installed here, or of any if none is; imports nothing of it."""
    cpu = versions.cpu_build()
    return Capabilities(
        config=CONFIG,
        native=True,
        sampling=frozenset(SamplingParams.model_fields),
        request=frozenset({"cache_salt", "ignore_eos", "lora", "min_tokens", "priority", "stop_token_ids"}),
        token_prompts=True,
        logprobs="raw-unless-structured",
        prompt_logprobs="raw",
        max_logprobs=MAX_LOGPROBS,
        score=True,
        embed=True,
        structured=frozenset({"choice", "grammar", "json_schema", "regex"}),
        dtypes=DTYPES,
        devices=frozenset({"cpu"}) if cpu else frozenset({"cpu", "cuda"}),
        quantization=frozenset() if cpu else versions.quantization(versions.installed()),
        quantize=quantize.SCHEMES if quantize.installed() else frozenset(),
        calibrated=quantize.CALIBRATED if quantize.installed() else frozenset(),
        speculative=frozenset({"draft_model", "eagle", "eagle3", "mtp", "ngram"}),
        determinism=frozenset() if cpu else frozenset({"batch-invariant", "run"}),
        sleep=not cpu,
        dynamic_lora=True,
        reset_prefix_cache=True,
        unseeded="varies",
        conflicts=CONFLICTS,
        unproven=UNPROVEN,
    )


def narrowed(
    config: EngineConfig, *, device: str, vocab_size: int, prefix_caching: bool, chunked_prefill: bool
) -> Capabilities:
    """Of one loaded engine.

    Args:
        config: what it was loaded with.
        device: ``cpu`` or ``cuda``.
        vocab_size: vLLM cannot list more alternatives than there are tokens.
        prefix_caching: as the engine decided.
        chunked_prefill: likewise.
    """
    every = declared()
    cpu = device == "cpu"
    request = every.request
    if config.lora is None:
        request -= {"lora"}
    if not prefix_caching:
        # Without a cache nothing is shared: a salt would be taken and mean nothing.
        request -= {"cache_salt"}
    sampling = every.sampling
    if chunked_prefill and versions.seeded_chunks_kill(device):
        sampling -= {"seed"}
    narrow = replace(
        every,
        sampling=sampling,
        devices=frozenset({device}),
        request=request,
        max_logprobs=min(MAX_LOGPROBS, vocab_size),
        quantization=frozenset() if cpu else every.quantization,
        determinism=frozenset() if cpu else every.determinism,
        sleep=not cpu,
        embed=config.task == "embed",
        dynamic_lora=config.lora is not None,
        reset_prefix_cache=prefix_caching,
    )
    if config.task == "generate":
        return narrow
    return replace(
        narrow,
        sampling=frozenset(),
        request=frozenset(),
        logprobs="none",
        prompt_logprobs="none",
        max_logprobs=0,
        score=False,
        structured=frozenset(),
        speculative=frozenset(),
    )
