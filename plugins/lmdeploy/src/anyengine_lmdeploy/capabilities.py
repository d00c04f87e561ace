"""What LMDeploy can do, in general and once it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.backend.model_config import text_config
from anyengine.capabilities import Capabilities, Conflict
from msgspec.structs import replace

from anyengine_lmdeploy import quantize

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_lmdeploy.options import BackendName

__all__ = ["MAX_LOGPROBS", "declared", "fits_fp8", "narrowed"]

#: The SDK's own bound.
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
    "parallel.tensor",
    "scheduling.max_num_batched_tokens",
    "scheduling.max_num_seqs",
    "trust_remote_code",
})  # fmt: skip

#: Sampling that both backends compute as the semantics say.
_SAMPLING = frozenset({"min_p", "seed", "temperature", "top_k", "top_p"})
#: Beside these, TurboMind has a repetition penalty over prompt and completion; that of the engine in PyTorch counts
#: generated tokens only, and one of them late (``strategies/ar/sampling.py``). The engine in PyTorch has hooks on the
#: logits, through which this package does what depends on nothing that was generated.
_OF: dict[BackendName, frozenset[str]] = {
    "turbomind": _SAMPLING | {"repetition_penalty"},
    "pytorch": _SAMPLING | {"allowed_token_ids", "logit_bias"},
}

#: Requests. ``min_tokens`` is nowhere: the engine in PyTorch holds terminators back one token too long, because its
#: input of a step is made before the last one has ended (``engine/logits_process.py``); TurboMind's own penalty ends
#: the whole engine where requests of a batch have different terminators (``logits_processor.cc``: index out of range).
_REQUEST: dict[BackendName, frozenset[str]] = {
    "turbomind": frozenset({"ignore_eos", "stop_token_ids"}),
    "pytorch": frozenset({"ignore_eos", "lora", "stop_token_ids"}),
}

CONFLICTS = (
    Conflict(
        "request.structured",
        "request.ignore_eos",
        "a complete structure can only be followed by an end-of-sequence token",
    ),
    Conflict(
        "request.structured",
        "sampling.allowed_token_ids",
        "where the two leave no token, LMDeploy draws one that neither allows",
    ),
)

#: TurboMind computes nothing of a prefix that it finds in its cache.
_PREFIXES = Conflict(
    "config.kv_cache.prefix_caching",
    "request.prompt_logprobs",
    "what comes out of TurboMind's prefix cache is not computed, and has no log-probabilities",
)

#: Side of the blocks of weights that share a scale (``lmdeploy/pytorch/config.py``).
_FP8_BLOCK = 128

#: Mapped, and never run by the authors of this package: see README.md.
UNPROVEN = frozenset({"devices", "eagle", "eagle3", "mtp", "trust_remote_code"})


def declared() -> Capabilities:
    """Of LMDeploy 0.18, both backends together; imports nothing of it."""
    return Capabilities(
        config=CONFIG,
        native=True,
        sampling=_OF["turbomind"] | _OF["pytorch"],
        request=_REQUEST["turbomind"] | _REQUEST["pytorch"],
        token_prompts=True,
        logprobs="raw",
        prompt_logprobs="raw",
        max_logprobs=MAX_LOGPROBS,
        score=True,
        structured=frozenset({"choice", "json_schema", "regex"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        devices=frozenset({"cuda"}),
        quantization=frozenset({"fp8"}),
        speculative=frozenset({"eagle", "eagle3", "mtp"}),
        sleep=True,
        quantize=quantize.SCHEMES if quantize.installed() else frozenset(),
        calibrated=quantize.SCHEMES if quantize.installed() else frozenset(),
        # TurboMind's seed is fixed without one.
        unseeded="fixed",
        conflicts=CONFLICTS,
        unproven=UNPROVEN,
    )


def fits_fp8(model: ModelFiles) -> bool:
    """Whether LMDeploy can quantise a model to fp8 while loading: in blocks of 128, without a part of one."""
    facts = text_config(model.config)
    heads = int(facts.get("num_attention_heads") or 0)
    hidden = int(facts.get("hidden_size") or 0)
    size = int(facts.get("head_dim") or (hidden // heads if heads else 0))
    widths = (
        hidden,
        facts.get("intermediate_size") or 0,
        heads * size,
        int(facts.get("num_key_value_heads") or heads) * size,
    )
    return all(width > 0 and width % _FP8_BLOCK == 0 for width in map(int, widths))


def narrowed(
    config: EngineConfig, model: ModelFiles, backend: BackendName, *, vocab_size: int, speculates: bool
) -> Capabilities:
    """Of one loaded engine.

    Args:
        config: what it was loaded with.
        model: the checkpoint.
        backend: what runs it.
        vocab_size: of the model.
        speculates: whether tokens are drafted.
    """
    every = declared()
    request, sampling = _REQUEST[backend], _OF[backend]
    if config.lora is None:
        request -= {"lora"}
    fields = every.config
    if backend == "turbomind":
        fields -= {"execution", "kv_cache.capacity_tokens", "lora"}
    if config.parallel.tensor > 1:
        # The hooks on the logits live in this process, and several devices have processes of their own.
        sampling -= {"allowed_token_ids", "logit_bias"}
    narrow = replace(
        every,
        config=fields,
        sampling=sampling,
        request=request,
        max_logprobs=min(MAX_LOGPROBS, vocab_size),
        conflicts=(*CONFLICTS, _PREFIXES) if backend == "turbomind" else CONFLICTS,
        # TurboMind's native library of this release lacks what its own `sleep` calls. That of the engine in PyTorch
        # makes a cache of zeros anew, and its table of prefixes (``paging/block_trie``) goes on pointing into it.
        sleep=backend == "pytorch" and not config.kv_cache.prefix_caching,
        score=backend == "pytorch" or not config.kv_cache.prefix_caching,
        quantization=every.quantization if backend == "pytorch" and fits_fp8(model) else frozenset(),
        speculative=every.speculative if backend == "pytorch" else frozenset(),
    )
    if speculates:
        # How its verification treats anything but the model's own logits was never tried.
        narrow = replace(
            narrow,
            sampling=frozenset({"temperature"}),
            structured=frozenset(),
            logprobs="none",
            prompt_logprobs="none",
            max_logprobs=0,
            score=False,
        )
    return narrow
