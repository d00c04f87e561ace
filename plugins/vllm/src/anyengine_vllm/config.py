"""From an :class:`~anyengine.EngineConfig` to the arguments of vLLM's engine: pure functions, no vLLM."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyengine.backend.adapters import check_adapter_rank
from anyengine.backend.dtypes import own_dtype
from anyengine.backend.model_config import text_config
from anyengine.errors import InvalidConfig

from anyengine_vllm import versions
from anyengine_vllm.capabilities import DTYPES, MAX_LOGPROBS
from anyengine_vllm.checks import check_device, check_embed, check_model, check_stored, unsupported
from anyengine_vllm.invariance import invariant_steps

if TYPE_CHECKING:
    from anyengine.config import EngineConfig, LoRAConfig
    from anyengine.hub import ModelFiles

__all__ = ["Arguments", "adapter_slots", "engine_arguments"]

#: Ranks that vLLM can be set up for; the smallest that suffices is taken.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: vLLM's own defaults, which it may decide on late; a capacity in tokens needs them early.
_BLOCK_SIZE = {"cpu": 128, "cuda": 16}

#: Small enough to be free on any machine.
_PLACEHOLDER_BYTES = 64 * 2**20
_PLACEHOLDER_FRACTION = 0.001

#: vLLM hands its seed to NumPy, which takes no more than this.
_SEEDS = 2**32


@dataclass(frozen=True, slots=True)
class Arguments:
    """What vLLM is started with.

    Attributes:
        values: keyword arguments of ``AsyncEngineArgs``.
        environment: variables for the processes of the engine.
    """

    values: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict[str, str])


def engine_arguments(config: EngineConfig, model: ModelFiles, device: str, *, amx: bool = False) -> Arguments:
    """Map every field.

    Args:
        config: within the declared capabilities.
        model: the checkpoint on disk.
        device: ``cpu`` or ``cuda``: what the installed vLLM computes on.
        amx: whether the processor has matrix tiles, on a CPU.

    Raises:
        UnsupportedParameter: a field cannot be honoured with this device or task.
        InvalidConfig: fields that contradict one another.
    """
    check_model(model)
    check_device(config, device)
    dtype = _dtype(config, model)
    if device == "cpu":
        check_stored(dtype, model, amx=amx)
    values: dict[str, Any] = {
        "model": str(model.path),
        "tokenizer": str(model.tokenizer_path),
        # Prompts are token ids; only the compiler of structures needs a tokenizer.
        "skip_tokenizer_init": config.task == "embed",
        "trust_remote_code": config.trust_remote_code,
        "dtype": dtype,
        "runner": "generate" if config.task == "generate" else "pooling",
        "tensor_parallel_size": config.parallel.tensor,
        "pipeline_parallel_size": config.parallel.pipeline,
        "data_parallel_size": config.parallel.data,
        "enable_expert_parallel": config.parallel.expert,
        "seed": _seed(config),
        # A model's own sampling defaults have no say.
        "generation_config": "vllm",
        "scheduling_policy": "priority",
        "max_logprobs": MAX_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        # Ours is the only stat logger: no log lines every ten seconds, no global Prometheus registry.
        "disable_log_stats": True,
    }
    optional = {
        "quantization": config.quantization,
        "enable_prefix_caching": config.kv_cache.prefix_caching,
        "block_size": config.kv_cache.block_size,
        "gpu_memory_utilization": config.kv_cache.gpu_memory_fraction,
        "max_num_seqs": _max_num_seqs(config),
        "max_num_batched_tokens": config.scheduling.max_num_batched_tokens,
        "enable_chunked_prefill": _chunked_prefill(config, device),
        "kv_cache_dtype": None if config.kv_cache.dtype == "auto" else config.kv_cache.dtype,
        "enforce_eager": {"auto": None, "eager": True, "graph": False}[config.execution],
        "enable_sleep_mode": True if device == "cuda" else None,
        "max_model_len": _max_model_len(config, model),
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    values |= invariant_steps(config, model, device)
    if config.task == "embed":
        check_embed(config)
        values["convert"] = "embed"
    else:
        # Of vLLM's backends this is the one whose grammars are Lark's. For some models (gpt-oss) vLLM parses reasoning
        # unasked, and constrains nothing before that has ended: a constraint here is of the whole answer.
        values["structured_outputs_config"] = {"backend": "guidance", "enable_in_reasoning": True}
    if config.speculative is not None:
        values["speculative_config"] = _speculative(config, model)
    if config.lora is not None:
        values |= _lora(config, model, device)
    if config.kv_cache.capacity_tokens is not None:
        values |= _blocks(config, device, config.kv_cache.capacity_tokens)
    return Arguments(values | dict(config.native), _environment(config))


def _dtype(config: EngineConfig, model: ModelFiles) -> str:
    """As asked, else the checkpoint's; where that says none, vLLM reads it off the weights.

    Its own ``auto`` is another: it turns float32 into 16 bits, and goes on in another type where it has not this one.
    """
    own = own_dtype(model.config)
    if config.dtype != "auto" or own is None:
        return config.dtype
    if own not in DTYPES:
        raise unsupported("dtype", f"the checkpoint is {own}, which vLLM does not compute in; ask for one", DTYPES)
    return own


def _seed(config: EngineConfig) -> int:
    """The engine's own seed. vLLM's default is fixed: unseeded requests would be the same after each start."""
    if config.seed is None:
        return secrets.randbelow(_SEEDS) if config.determinism == "none" else 0
    if config.seed >= _SEEDS:
        raise unsupported("seed", f"vLLM takes seeds below 2**32, not {config.seed}")
    return config.seed


def _max_model_len(config: EngineConfig, model: ModelFiles) -> int | None:
    """As asked; the model's own where it fits into the cache; None leaves it to vLLM."""
    wanted, capacity = config.max_model_len, config.kv_cache.capacity_tokens
    if capacity is None:
        return wanted
    if wanted is not None and wanted > capacity:
        raise InvalidConfig(
            f"kv_cache.capacity_tokens: {capacity} tokens do not hold one context of {wanted} (max_model_len)",
            field="kv_cache.capacity_tokens",
        )
    own: Any = text_config(model.config).get("max_position_embeddings")
    if wanted is None and isinstance(own, int) and own > capacity:
        return capacity
    return wanted


def _max_num_seqs(config: EngineConfig) -> int | None:
    """As vLLM counts them: of each copy of the model."""
    wanted, copies = config.scheduling.max_num_seqs, config.parallel.data
    if wanted is None:
        return None
    if wanted % copies:
        raise unsupported(
            "scheduling.max_num_seqs",
            f"vLLM bounds each of the {copies} copies (parallel.data) by itself: a multiple of {copies}, not {wanted}",
        )
    return wanted // copies


def _chunked_prefill(config: EngineConfig, device: str) -> bool | None:
    """As asked; where seeds and chunks do not go together seeds come first, unless the steps' size leaves no choice."""
    wanted = config.scheduling.chunked_prefill
    if wanted is None and config.scheduling.max_num_batched_tokens is None and versions.seeded_chunks_kill(device):
        return False
    return wanted


def _blocks(config: EngineConfig, device: str, capacity: int) -> dict[str, Any]:
    """A capacity in tokens as vLLM counts it: in blocks of each copy of the model, one of which is never used."""
    block_size = config.kv_cache.block_size or _BLOCK_SIZE.get(device, _BLOCK_SIZE["cuda"])
    blocks = -(-capacity // (block_size * config.parallel.data)) + 1
    values: dict[str, Any] = {
        "block_size": block_size,
        "num_gpu_blocks_override": blocks,
        # Without a size in bytes vLLM insists on a share of all memory. The number of blocks decides.
        "kv_cache_memory_bytes": _PLACEHOLDER_BYTES,
    }
    if device == "cuda":
        # It still refuses to start where that share, by default nine tenths of the device, is not free.
        values["gpu_memory_utilization"] = _PLACEHOLDER_FRACTION
    return values


def _environment(config: EngineConfig) -> dict[str, str]:
    variables: dict[str, str] = {}
    if config.determinism != "none":
        # What runs together depends on when requests arrive; so `run` too needs results that do not depend on it.
        variables["VLLM_BATCH_INVARIANT"] = "1"
    # A fork of a process with threads and an event loop may hang; vLLM's default depends on what was imported before.
    variables["VLLM_WORKER_MULTIPROC_METHOD"] = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # An engine that somebody embeds does not report home.
    variables["VLLM_NO_USAGE_STATS"] = os.environ.get("VLLM_NO_USAGE_STATS", "1")
    return variables


def _speculative(config: EngineConfig, model: ModelFiles) -> dict[str, Any]:
    wanted = config.speculative
    if wanted is None:
        return {}
    values: dict[str, Any] = {"method": wanted.method, "num_speculative_tokens": wanted.num_speculative_tokens}
    if wanted.method == "ngram":
        return values | {"prompt_lookup_min": wanted.ngram_min, "prompt_lookup_max": wanted.ngram_max}
    if wanted.method == "mtp":
        if model.draft is not None:
            raise InvalidConfig(
                "speculative.model: the layers of method 'mtp' are part of the model itself", field="speculative.model"
            )
        return values
    if model.draft is None:
        raise InvalidConfig(
            f"speculative.model: method {wanted.method!r} needs the proposer's checkpoint", field="speculative.model"
        )
    sizes = [text_config(files.config).get("vocab_size") for files in (model, model.draft)]
    if wanted.method == "draft_model" and sizes[0] != sizes[1]:
        raise InvalidConfig(
            f"speculative.model: its vocabulary has {sizes[1]} tokens, the model's has {sizes[0]}; they must share a "
            "tokenizer",
            field="speculative.model",
        )
    return values | {"model": str(model.draft.path)}


def _lora(config: EngineConfig, model: ModelFiles, device: str) -> dict[str, Any]:
    wanted = config.lora
    if wanted is None:
        return {}
    rank = next((rank for rank in _RANKS if rank >= wanted.max_rank), None)
    if rank is None:
        raise unsupported("lora.max_rank", f"vLLM's largest is {_RANKS[-1]}, not {wanted.max_rank}")
    for name, folder in model.loras.items():
        check_adapter_rank(name, folder, wanted.max_rank)
    slots = wanted.most_in_a_batch
    if device == "cpu":
        # vLLM's kernels for the CPU give a request without an adapter whatever lies in the last slot, if another in its
        # batch has one. So there is one slot more than adapters, and it stays empty.
        slots = adapter_slots(wanted) + 1
    return {
        "enable_lora": True,
        "max_lora_rank": rank,
        "max_loras": slots,
        # All of them stay in memory; beyond this vLLM reads them from disk again.
        "max_cpu_loras": max(slots, len(wanted.adapters)),
    }


def adapter_slots(wanted: LoRAConfig) -> int:
    """Adapters that there can be at once on a CPU: see :func:`engine_arguments`."""
    return max(wanted.most_in_a_batch, len(wanted.adapters))
