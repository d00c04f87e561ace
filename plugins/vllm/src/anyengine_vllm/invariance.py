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
    numbers is summed in another order then, and an answer depends on its company. Seen on an H200 with SmolLM2 (576
    wide): one of four seeded answers had another token among ten others. https://github.com/vllm-project/vllm/pull/48391

    Returns:
        Arguments of vLLM's engine.

    Raises:
        UnsupportedParameter: what was asked for needs larger steps; names the field.
    """
    if config.determinism == "none" or device == "cpu" or versions.invariant_in_large_steps(versions.installed()):
        return {}
    width: Any = text_config(model.config).get("hidden_size")
    if isinstance(width, int) and width <= _NARROW:
        return {}
    why = f"before 0.27 vLLM keeps determinism={config.determinism!r} in steps of at most {_MOST} tokens only"
    if config.task == "embed":
        raise unsupported("determinism", f"{why}, and a text to embed is computed in one step", {"none"})
    scheduling = config.scheduling
    for name in ("max_num_batched_tokens", "max_num_seqs"):
        wanted = getattr(scheduling, name)
        copies = config.parallel.data if name == "max_num_seqs" else 1
        if wanted is not None and wanted > _MOST * copies:
            raise unsupported(f"scheduling.{name}", f"{why}: {wanted} is too many; leave it out, or ask for fewer")
    if scheduling.chunked_prefill is False:
        raise unsupported("scheduling.chunked_prefill", f"{why}, so longer prompts are computed in chunks")
    tokens = scheduling.max_num_batched_tokens or _MOST
    # Of a step vLLM keeps one token for each sequence where a draft model may need it.
    drafts = config.speculative is not None and config.speculative.method == "draft_model"
    sequences = max(1, tokens // 2) if drafts else tokens
    return {"max_num_batched_tokens": tokens} | ({} if scheduling.max_num_seqs else {"max_num_seqs": sequences})
