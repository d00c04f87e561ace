"""What TensorRT-LLM 1.2 can do, in general and once it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.capabilities import Capabilities, Conflict
from anyengine.request import SamplingParams
from msgspec.structs import replace

from anyengine_trtllm import quantize
from anyengine_trtllm.checkpoint import own_quantization
from anyengine_trtllm.pytorch import stored_dtype

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_trtllm.options import Options

__all__ = ["MAX_LOGPROBS", "QUANTIZATION", "declared", "narrowed"]

#: The SDK's own bound: log-probabilities are worked out from whole rows of logits.
MAX_LOGPROBS = 1000

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
    "parallel.expert",
    "parallel.pipeline",
    "parallel.tensor",
    "scheduling.chunked_prefill",
    "scheduling.max_num_batched_tokens",
    "scheduling.max_num_seqs",
    "trust_remote_code",
})  # fmt: skip

#: Our name of a scheme → the member of ``QuantAlgo``. Those that a checkpoint must have been made with (GPTQ, mixed
#: precision) are not among them.
QUANTIZATION = {
    "fp8": "FP8",
    "fp8_per_channel_per_token": "FP8_PER_CHANNEL_PER_TOKEN",
    "nvfp4": "NVFP4",
    "w4a16": "W4A16",
    "w4a16_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "w8a16": "W8A16",
    "w8a8_sq_per_channel": "W8A8_SQ_PER_CHANNEL",
}

#: Fields that the sampler written in PyTorch ignores in 1.2 without a word.
NOT_IN_TORCH_SAMPLER = frozenset({
    "bad_words",
    "frequency_penalty",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "seed",
})  # fmt: skip

#: Pairs that TensorRT-LLM computes in another order than ours, or not together.
CONFLICTS = (
    Conflict(
        "sampling.logit_bias",
        "sampling.repetition_penalty",
        "TensorRT-LLM adds the bias before it multiplies, here it is added after",
    ),
    Conflict(
        "sampling.min_p",
        "sampling.top_p",
        "TensorRT-LLM applies min_p first, and top_p to what that leaves; here it is the other way round",
    ),
    Conflict(
        "request.structured",
        "request.ignore_eos",
        "a complete structure can only be followed by an end-of-sequence token",
    ),
    Conflict(
        "request.structured",
        "request.min_tokens",
        "where the structure is complete too early, nothing is left to draw",
    ),
    Conflict(
        "request.structured",
        "sampling.allowed_token_ids",
        "where the two leave no token, TensorRT-LLM draws one that was ruled out",
    ),
    Conflict(
        "request.structured",
        "sampling.bad_words",
        "where the two leave no token, TensorRT-LLM draws one that was ruled out",
    ),
    Conflict(
        "request.min_tokens",
        "request.stop_token_ids",
        "TensorRT-LLM holds its one end token back, and no stop token",
    ),
    Conflict(
        "request.min_tokens",
        "request.logprobs",
        "min_tokens goes by the engine's own end token, whose logits TensorRT-LLM may leave out",
    ),
    *(
        Conflict(
            "config.speculative",
            f"sampling.{name}",
            "drafts need the sampler in PyTorch, which ignores it in this release",
        )
        for name in sorted(NOT_IN_TORCH_SAMPLER)
    ),
    Conflict("config.speculative", "request.min_tokens", "drafts need the sampler in PyTorch, which ignores it"),
)


def declared() -> Capabilities:
    """Of TensorRT-LLM 1.2 on its PyTorch backend; imports nothing of it.

    Everything is unproven: nothing of it was ever run on the engine.
    """
    every = Capabilities(
        config=CONFIG,
        native=True,
        sampling=frozenset(SamplingParams.model_fields),
        request=frozenset({"cache_salt", "ignore_eos", "lora", "min_tokens", "stop_token_ids"}),
        token_prompts=True,
        logprobs="raw-unless-structured",
        prompt_logprobs="raw",
        max_logprobs=MAX_LOGPROBS,
        score=True,
        structured=frozenset({"choice", "grammar", "json_schema", "regex"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        devices=frozenset({"cuda"}),
        quantization=frozenset(QUANTIZATION),
        quantize=quantize.SCHEMES if quantize.installed() else frozenset(),
        calibrated=quantize.SCHEMES if quantize.installed() else frozenset(),
        speculative=frozenset({"draft_model", "eagle", "eagle3", "mtp", "ngram"}),
        dynamic_lora=True,
        # Without a seed every request draws from seed 0.
        unseeded="fixed",
        conflicts=CONFLICTS,
    )
    return replace(every, unproven=_names(every))


def _names(capabilities: Capabilities) -> frozenset[str]:
    """Every name that is declared."""
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
    switches = ("native", "token_prompts", "score", "dynamic_lora")
    names = set[str]().union(*(getattr(capabilities, field) for field in listed))
    names |= {name for name in switches if getattr(capabilities, name)}
    return frozenset(names | {"logprobs", "prompt_logprobs"})


def narrowed(
    config: EngineConfig, options: Options, model: ModelFiles, *, vocab_size: int, prefix_caching: bool
) -> Capabilities:
    """Of one loaded engine.

    Args:
        config: what it was loaded with.
        options: which backend and sampler it has.
        model: how many end-of-sequence tokens there are decides on ``min_tokens``.
        vocab_size: of the model.
        prefix_caching: as loaded.
    """
    every = declared()
    request, sampling = every.request, every.sampling
    if config.lora is None:
        request -= {"lora"}
    if not prefix_caching:
        # Without a cache nothing is shared: a salt would be taken and mean nothing.
        request -= {"cache_salt"}
    if options.torch_sampler or len(model.eos_token_ids) != 1:
        # Only the engine's one end token is held back, and only by the sampler in C++.
        request -= {"min_tokens"}
    if options.torch_sampler:
        sampling -= NOT_IN_TORCH_SAMPLER
    if options.greedy_only:
        # The model itself takes the most likely tokens, of logits that no sampler has seen (``SpecWorkerBase``).
        sampling -= {"allowed_token_ids", "logit_bias"}
    # In PyTorch a checkpoint runs as it was made; these fields can only say again what that is.
    quantization = every.quantization if options.tensorrt else every.quantization & {own_quantization(model)}
    dtypes = every.dtypes if options.tensorrt else every.dtypes & {stored_dtype(model)}
    structured = every.structured
    if options.tensorrt:
        # That backend has xgrammar only, whose grammars are EBNF.
        structured -= {"grammar"}
    narrow = replace(
        every,
        request=request,
        sampling=sampling,
        structured=structured,
        dtypes=dtypes,
        quantization=quantization,
        max_logprobs=min(MAX_LOGPROBS, vocab_size),
        dynamic_lora=config.lora is not None,
        unseeded="varies" if options.torch_sampler else "fixed",
    )
    if options.tensorrt:
        # An engine gives logits only if it was built to.
        narrow = replace(narrow, logprobs="none", prompt_logprobs="none", max_logprobs=0, score=False)
    if options.speculates:
        # What a verified draft leaves of logits and of grammars is nowhere documented.
        narrow = replace(
            narrow, logprobs="none", prompt_logprobs="none", max_logprobs=0, score=False, structured=frozenset()
        )
    return replace(narrow, unproven=_names(narrow))
