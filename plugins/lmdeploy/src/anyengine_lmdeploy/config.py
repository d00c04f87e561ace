"""From an :class:`~anyengine.EngineConfig` to LMDeploy's configurations: pure functions, no LMDeploy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyengine.backend.adapters import (
    check_adapter_rank,
    check_adapter_settings,
    check_adapters_in_one_batch,
    read_adapter,
)
from anyengine.backend.memory import free_fraction, weight_bytes
from anyengine.backend.model_config import text_config
from anyengine.errors import InvalidConfig

from anyengine_lmdeploy.checks import KV_CACHE_DTYPES, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyengine.config import EngineConfig, LoRAConfig
    from anyengine.hub import ModelFiles

    from anyengine_lmdeploy.options import BackendName, Options

__all__ = ["RESERVED_BLOCKS", "Arguments", "block_size", "engine_arguments", "max_model_len"]

#: LMDeploy's own default on both backends, in tokens.
BLOCK_SIZE = 64

#: Blocks that the engine in PyTorch keeps for itself (``num_reserved_gpu_blocks``).
RESERVED_BLOCKS = 1

#: Fewer it refuses (``EngineChecker``).
FEWEST_BLOCKS = 16

#: Multi-token prediction goes by the family of the model: part of its ``model_type`` → LMDeploy's method.
_MTP = {"deepseek": "deepseek_mtp", "qwen3_5": "qwen3_5_mtp", "hunyuan": "hy3_mtp", "hy_v3": "hy3_mtp"}

#: What PEFT writes of an adapter, and LMDeploy's loader does not look at or does not get through. It scales every
#: adapter by ``lora_alpha / r``, gives it matrices of rank ``r`` in each module of a name, and leaves those that the
#: adapter has none for as they were allocated (``pytorch/adapter/adapter.py``, ``models/patch.py``).
_IGNORED_OF_ADAPTERS = (
    "use_rslora",
    "alpha_pattern",
    "rank_pattern",
    "layers_to_transform",
    "exclude_modules",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_dora",
    "use_qalora",
    "bias",
    "lora_bias",
    "modules_to_save",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What LMDeploy is started with.

    Attributes:
        backend: ``turbomind`` or ``pytorch``.
        config: fields of that backend's configuration.
        speculative: fields of ``SpeculativeConfig``; None without speculation.
    """

    backend: BackendName
    config: dict[str, Any]
    speculative: dict[str, Any] | None = None
    engine: dict[str, Any] = field(default_factory=dict[str, Any])


def engine_arguments(
    config: EngineConfig,
    model: ModelFiles,
    options: Options,
    backend: BackendName,
    device_memory: Callable[[], tuple[int, int]],
) -> Arguments:
    """Map every field.

    Args:
        config: checked.
        model: the checkpoint on disk.
        options: what ``native`` said.
        backend: the one that runs it.
        device_memory: (free, total) bytes of a device; asked only for a share of memory.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
        OutOfMemory: the share of memory that was asked for does not hold the model, or is not free.
    """
    values: dict[str, Any] = {
        "dtype": config.dtype,
        "tp": config.parallel.tensor,
        "session_len": max_model_len(config, model),
        "enable_prefix_caching": bool(config.kv_cache.prefix_caching),
        "quant_policy": KV_CACHE_DTYPES[backend][config.kv_cache.dtype],
        # Statistics, and how many prompt tokens came out of the cache.
        "enable_metrics": True,
    }
    optional = {
        "max_batch_size": config.scheduling.max_num_seqs,
        "max_prefill_token_num": config.scheduling.max_num_batched_tokens,
        "block_size" if backend == "pytorch" else "cache_block_seq_len": config.kv_cache.block_size,
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    values |= _capacity(config, model, device_memory)
    if backend == "pytorch":
        # Raw ones, of the model's own distribution; LMDeploy's default is none at all.
        values |= {"logprobs_mode": "raw_logprobs", "device_type": "cuda"}
        if config.execution != "auto":
            values["eager_mode"] = config.execution == "eager"
        if config.quantization is not None:
            values["model_format"] = config.quantization
        if config.lora is not None:
            values["adapters"] = _adapters(config.lora, model)
    arguments = dict(options.arguments)
    speculative = arguments.pop("speculative_config", None)
    if config.speculative is not None:
        speculative = _speculative(config, model)
    return Arguments(
        backend=backend,
        config=values | arguments,
        speculative=speculative,
        engine={"trust_remote_code": config.trust_remote_code},
    )


def block_size(config: EngineConfig) -> int:
    """As asked; else LMDeploy's own, or smaller where the cache would have too few blocks of that."""
    wanted, capacity = config.kv_cache.block_size, config.kv_cache.capacity_tokens
    if wanted is not None or capacity is None:
        return wanted or BLOCK_SIZE
    return next((size for size in (BLOCK_SIZE, 32) if capacity >= size * FEWEST_BLOCKS), 16)


def max_model_len(config: EngineConfig, model: ModelFiles) -> int:
    """As asked; else the model's own, as far as the cache holds it.

    The engine in PyTorch leaves one block free of a context (``Engine._get_max_session_len``).

    Raises:
        InvalidConfig: it does not fit, or nobody says how long the context is.
    """
    own: Any = text_config(model.config).get("max_position_embeddings")
    wanted, capacity = config.max_model_len, config.kv_cache.capacity_tokens
    if wanted is None and not isinstance(own, int):
        raise InvalidConfig("max_model_len: the model's config.json does not say; give it", field="max_model_len")
    if wanted is not None and isinstance(own, int) and wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the model's {own}", field="max_model_len")
    length: int = wanted or own
    if capacity is None:
        return length
    block = block_size(config)
    room = (-(-capacity // block) - 1) * block
    if room < (wanted or 1):
        raise InvalidConfig(
            f"kv_cache.capacity_tokens: {capacity} tokens hold a context of {room}, not of {wanted or 1} "
            "(max_model_len)",
            field="kv_cache.capacity_tokens",
        )
    return min(length, room)


def _capacity(config: EngineConfig, model: ModelFiles, device_memory: Callable[[], tuple[int, int]]) -> dict[str, Any]:
    wanted = config.kv_cache
    if wanted.capacity_tokens is not None:
        size = block_size(config)
        blocks = -(-wanted.capacity_tokens // size)
        if blocks < FEWEST_BLOCKS:
            raise InvalidConfig(
                f"kv_cache.capacity_tokens: {wanted.capacity_tokens} tokens are {blocks} blocks of {size}; LMDeploy "
                f"needs {FEWEST_BLOCKS}",
                field="kv_cache.capacity_tokens",
            )
        return {"num_gpu_blocks": blocks + RESERVED_BLOCKS, "block_size": size}
    if wanted.gpu_memory_fraction is not None:
        free, total = device_memory()
        share = free_fraction(
            wanted.gpu_memory_fraction,
            total=total,
            free=free,
            weights=weight_bytes(model.path, devices=config.parallel.tensor),
        )
        # 1 would be a number of blocks.
        return {"cache_max_entry_count": min(share, 0.99)}
    return {}


def _adapters(wanted: LoRAConfig, model: ModelFiles) -> dict[str, str]:
    if not model.loras:
        raise InvalidConfig(
            "lora.adapters: name at least one; LMDeploy loads adapters with the model only", field="lora.adapters"
        )
    # LMDeploy bounds neither: it takes adapters of any rank, and batches as many as it was loaded with.
    for name, folder in model.loras.items():
        check_adapter_rank(name, folder, wanted.max_rank)
        check_adapter_settings("LMDeploy", name, folder, _IGNORED_OF_ADAPTERS)
        _check_targets(name, folder)
    check_adapters_in_one_batch("LMDeploy", wanted)
    return {name: str(folder) for name, folder in model.loras.items()}


def _check_targets(name: str, folder: Path) -> None:
    """LMDeploy puts an adapter on every module of the last part of a name; a pattern it takes apart into letters."""
    targets: Any = read_adapter(name, folder).get("target_modules") or ()
    if isinstance(targets, str) or any("." in str(target) for target in targets):
        raise unsupported(
            f"lora.adapters.{name}",
            f"LMDeploy takes target_modules that are a list of plain names of modules, such as q_proj, not {targets!r}",
        )


def _speculative(config: EngineConfig, model: ModelFiles) -> dict[str, Any] | None:
    wanted = config.speculative
    if wanted is None:
        return None
    values: dict[str, Any] = {"num_speculative_tokens": wanted.num_speculative_tokens}
    if wanted.method == "mtp":
        family = str(model.config.get("model_type", ""))
        method = next((method for part, method in _MTP.items() if part in family), None)
        if method is None:
            raise unsupported("speculative.method", f"LMDeploy has no multi-token prediction for a {family!r} model")
        return values | {"method": method, "model": str(model.path)}
    draft = model.draft
    assert draft is not None  # noqa: S101 checked before
    return values | {"method": wanted.method, "model": str(draft.path)}
