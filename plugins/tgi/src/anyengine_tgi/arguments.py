"""From an :class:`~anyengine.EngineConfig` to the launcher's arguments and variables: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.backend.dtypes import own_dtype
from anyengine.errors import InvalidConfig, UnsupportedParameter

from anyengine_tgi.adapters import lora_adapters
from anyengine_tgi.capabilities import MAX_LOGPROBS
from anyengine_tgi.launcher import native_flags
from anyengine_tgi.models import check_kind, prefill_tokens
from anyengine_tgi.variables import check_surroundings, variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["Arguments", "launcher_arguments"]

#: What the launcher captures unless it is told otherwise.
_GRAPHS = (1, 2, 4, 8, 16, 32)
#: Requests that TGI lets in at once: more than the SDK ever hands over where the engine does not say how many it runs.
_CONCURRENT = 1024
_PAYLOAD = 2**28
#: Arguments that are paths: TGI works in a folder of its own.
_PATHS = frozenset({"huggingface_hub_cache", "tokenizer_config_path", "weights_cache_override"})
_KV_DTYPES = ("fp8_e4m3fn", "fp8_e5m2")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the launcher is started with.

    Attributes:
        values: its arguments by name.
        environment: variables beside them.
    """

    values: dict[str, Any]
    environment: dict[str, str]


def launcher_arguments(config: EngineConfig, model: ModelFiles, surroundings: Mapping[str, str]) -> Arguments:
    """Map every field.

    Args:
        config: within the declared capabilities.
        model: the checkpoint on disk.
        surroundings: variables that the launcher would inherit; it takes each argument from one, too.

    Raises:
        UnsupportedParameter: a field cannot be honoured with this model.
        InvalidConfig: fields that contradict one another, or a variable that would decide instead of a field.
    """
    native = native_flags(config.native)
    native |= {name: str(Path(native[name]).absolute()) for name in _PATHS & native.keys()}
    if model.tokenizer_path != model.path:
        raise _unsupported("tokenizer", "TGI takes the tokenizer of the model's own folder")
    check_kind(config, model)
    # To score a text TGI must generate a token behind it.
    room = 1 if native.get("enable_prefill_logprobs") else 0
    total = None if config.max_model_len is None else config.max_model_len + room
    longest = None if total is None else total - 1
    values: dict[str, Any] = {
        "model_id": str(model.path.absolute()),
        # Else TGI takes every device that it sees.
        "num_shard": config.parallel.tensor,
        "sharded": config.parallel.tensor > 1,
        "trust_remote_code": config.trust_remote_code,
        "max_concurrent_requests": max(_CONCURRENT, 2 * (config.scheduling.max_num_seqs or 0)),
        "max_top_n_tokens": MAX_LOGPROBS,
        # 2 MB by default, which a prompt within the context can exceed; its tokens are counted before it is sent.
        "payload_limit": _PAYLOAD,
        # An engine that somebody embeds does not report home.
        "usage_stats": "off",
    }
    optional: dict[str, Any] = {
        "dtype": _dtype(config, model),
        "quantize": config.quantization,
        "kv_cache_dtype": _kv_dtype(config),
        "cuda_memory_fraction": config.kv_cache.gpu_memory_fraction,
        "max_total_tokens": total,
        "max_input_tokens": longest,
        "max_batch_prefill_tokens": prefill_tokens(config, model, longest),
        "cuda_graphs": _graphs(config),
        "speculate": _speculate(config),
        "lora_adapters": lora_adapters(config, model),
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    check_surroundings(surroundings, values | native)
    return Arguments(values | native, variables(config))


def _unsupported(name: str, message: str, supported: tuple[str, ...] = ()) -> UnsupportedParameter:
    return UnsupportedParameter(f"{name}: {message}", field=name, supported=supported)


def _dtype(config: EngineConfig, model: ModelFiles) -> str | None:
    """As asked, else the checkpoint's: TGI's own default is float16 for most models, whatever theirs is."""
    if config.quantization is not None:
        if config.dtype != "auto":
            raise InvalidConfig("dtype: TGI takes it or quantization, not both", field="dtype")
        return None
    if config.dtype != "auto":
        if "quantization_config" in model.config:
            # The launcher makes --quantize of it, which the server refuses beside --dtype.
            raise _unsupported("dtype", "TGI takes none for a checkpoint that is quantised", ("auto",))
        return config.dtype
    if "quantization_config" in model.config or "compression_config" in model.config:
        return None
    own = own_dtype(model.config) or "float32"
    if own not in {"bfloat16", "float16"}:
        raise _unsupported(
            "dtype", f"the checkpoint is {own}, which TGI does not compute in; ask for one", ("bfloat16", "float16")
        )
    return own


def _kv_dtype(config: EngineConfig) -> str | None:
    wanted = config.kv_cache.dtype
    if wanted == "auto":
        return None
    if wanted not in _KV_DTYPES:
        raise _unsupported("kv_cache.dtype", f"TGI has no {wanted!r}", ("auto", *_KV_DTYPES))
    return wanted


def _graphs(config: EngineConfig) -> tuple[int, ...] | None:
    if config.execution == "eager":
        return (0,)
    if config.lora is not None:
        # The graphs are captured without adapters, and replayed so: TGI means to switch them off, and does not
        # (cli.py sets a variable of its own).
        if config.execution == "graph":
            raise _unsupported("execution", "TGI's graphs compute without the adapters of lora; leave it at auto")
        return (0,)
    if config.execution == "graph" and config.quantization in {"bitsandbytes", "exl2"}:
        raise _unsupported("execution", f"TGI captures no graphs with {config.quantization}")
    return _GRAPHS if config.execution == "graph" else None


def _speculate(config: EngineConfig) -> int | None:
    wanted = config.speculative
    if wanted is None:
        return None
    for name in ("ngram_min", "ngram_max"):
        if name in set(wanted.changed()):
            raise _unsupported(f"speculative.{name}", "TGI looks up the last token alone, always")
    return wanted.num_speculative_tokens
