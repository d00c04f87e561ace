"""Steps small enough for vLLM's batch-invariant kernels to be what their name says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend.model_config import text_config

from anyengine_vllm import versions
from anyengine_vllm.checks import unsupported

if TYPE_CHECKING:
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["invariant_steps"]

#: Tokens of a step. A captured graph rounds them up to one of its sizes, of which this is the last below 256.
_MOST = 248
#: Up to this width a row is summed in the same way in steps of any size.
_NARROW = 256


def invariant_steps(config: EngineConfig, model: ModelFiles, device: str) -> dict[str, int]:
    """Sizes of the scheduler's steps that keep the promise of ``determinism``; none where it is kept anyway.

    Before 0.27 the kernel that adds a residual and normalises (``fused_add_rms_norm``) has 1,024 threads in a step of
    fewer than 256 tokens and 256 threads in a larger one, also with ``VLLM_BATCH_INVARIANT=1``. A row of more than 256
    numbers is summed in another order then, and an answer depends on its company, of the model as of its draft. On an
    H200 a seeded answer of SmolLM2 (576 wide) had another token among ten others than alone.
    Source: csrc/libtorch_stable/layernorm_kernels.cu; https://github.com/vllm-project/vllm/pull/48391

    Returns:
        Arguments of vLLM's engine.

    Raises:
        UnsupportedParameter: what was asked for needs larger steps; names the field.
    """
    if config.determinism == "none" or device == "cpu" or versions.invariant_in_large_steps(versions.installed()):
        return {}
    if _narrow(model) and (model.draft is None or _narrow(model.draft)):
        return {}
    why = f"before 0.27 vLLM keeps determinism={config.determinism!r} in steps of at most {_MOST} tokens only"
    if config.task == "embed":
        raise unsupported("determinism", f"{why}, and a text to embed is computed in one step", {"none"})
    wanted, copies = config.scheduling, config.parallel.data
    tokens = wanted.max_num_batched_tokens or _MOST
    if tokens > _MOST:
        raise unsupported("scheduling.max_num_batched_tokens", f"{why}, not {tokens}; leave it out, or ask for fewer")
    # Of a step vLLM keeps one token for each sequence where a draft model may need it.
    drafts = config.speculative is not None and config.speculative.method == "draft_model"
    most = tokens - 1 if drafts else tokens
    sequences = wanted.max_num_seqs or max(1, tokens // 2 if drafts else tokens) * copies
    if sequences > most * copies:
        raise unsupported(
            "scheduling.max_num_seqs", f"{why}, which hold at most {most * copies} sequences here, not {sequences}"
        )
    if wanted.chunked_prefill is False and (config.max_model_len is None or config.max_model_len > tokens):
        raise unsupported("scheduling.chunked_prefill", f"{why}, so longer prompts are computed in chunks")
    return {"max_num_batched_tokens": tokens, "max_num_seqs": sequences // copies}


def _narrow(model: ModelFiles) -> bool:
    width: Any = text_config(model.config).get("hidden_size")
    return isinstance(width, int) and width <= _NARROW
