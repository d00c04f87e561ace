"""``text-generation-launcher``: its arguments, and which of them a field of ours decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ARGUMENTS", "INEFFECTIVE", "OWNED", "PROGRAM", "flags", "native_flags"]

PROGRAM = "text-generation-launcher"

#: How a value is written: a flag without one, a switch with ``true`` or ``false``, numbers joined by commas, …
Kind = Literal["flag", "bool", "int", "float", "str", "ints", "strs"]

#: What the launcher takes and the server does not look at, and what happens instead.
INEFFECTIVE: Mapping[str, str] = {
    "max_batch_total_tokens": "TGI's cache is as large as memory lets it be (kv_cache.gpu_memory_fraction)"
}

#: Every argument of TGI 3.3.7 that takes effect on a server, by the name of its environment variable in lower case.
ARGUMENTS: dict[str, Kind] = {
    "api_key": "str",
    "cors_allow_origin": "strs",
    "cuda_graphs": "ints",
    "cuda_memory_fraction": "float",
    "disable_custom_kernels": "flag",
    "disable_grammar_support": "flag",
    "dtype": "str",
    "enable_prefill_logprobs": "flag",
    "graceful_termination_timeout": "int",
    "hostname": "str",
    "huggingface_hub_cache": "str",
    "json_output": "flag",
    "kv_cache_dtype": "str",
    "lora_adapters": "str",
    "master_addr": "str",
    "master_port": "int",
    "max_batch_prefill_tokens": "int",
    "max_batch_size": "int",
    "max_best_of": "int",
    "max_client_batch_size": "int",
    "max_concurrent_requests": "int",
    "max_input_length": "int",
    "max_input_tokens": "int",
    "max_stop_sequences": "int",
    "max_top_n_tokens": "int",
    "max_total_tokens": "int",
    "max_waiting_tokens": "int",
    "model_id": "str",
    "ngrok": "flag",
    "ngrok_authtoken": "str",
    "ngrok_edge": "str",
    "num_shard": "int",
    "otlp_endpoint": "str",
    "otlp_service_name": "str",
    "payload_limit": "int",
    "port": "int",
    "prometheus_port": "int",
    "quantize": "str",
    "revision": "str",
    "rope_factor": "float",
    "rope_scaling": "str",
    "shard_uds_path": "str",
    "sharded": "bool",
    "speculate": "int",
    "tokenizer_config_path": "str",
    "trust_remote_code": "flag",
    "usage_stats": "str",
    "validation_workers": "int",
    "waiting_served_ratio": "float",
    "watermark_delta": "float",
    "watermark_gamma": "float",
    "weights_cache_override": "str",
}

#: Arguments that are decided by a field of ours, or by this package (empty): the field that a clash is with.
OWNED: Mapping[str, str] = {
    "api_key": "",
    "cuda_graphs": "execution",
    "cuda_memory_fraction": "kv_cache.gpu_memory_fraction",
    "dtype": "dtype",
    "hostname": "",
    "kv_cache_dtype": "kv_cache.dtype",
    "lora_adapters": "lora",
    "master_port": "",
    "max_batch_prefill_tokens": "scheduling.max_num_batched_tokens",
    "max_batch_size": "scheduling.max_num_seqs",
    "max_concurrent_requests": "scheduling.max_num_seqs",
    "max_input_length": "max_model_len",
    "max_input_tokens": "max_model_len",
    "max_top_n_tokens": "",
    "max_total_tokens": "max_model_len",
    "model_id": "model",
    "ngrok": "",
    "ngrok_authtoken": "",
    "ngrok_edge": "",
    "num_shard": "parallel.tensor",
    "port": "",
    "prometheus_port": "",
    "quantize": "quantization",
    "revision": "revision",
    "sharded": "parallel.tensor",
    "shard_uds_path": "",
    "speculate": "speculative",
    "trust_remote_code": "trust_remote_code",
    "usage_stats": "",
}

_TYPES: dict[Kind, tuple[type, ...]] = {
    "flag": (bool,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def flags(values: Mapping[str, Any]) -> list[str]:
    """Arguments as the command line has them, in order of their names."""
    found: list[str] = []
    for name, value in sorted(values.items()):
        flag = "--" + name.replace("_", "-")
        kind = ARGUMENTS[name]
        if kind == "flag":
            found += [flag] if value else []
        elif kind == "bool":
            found += [flag, "true" if value else "false"]
        elif kind == "strs":
            for one in value:
                found += [flag, str(one)]
        else:
            found += [flag, ",".join(map(str, value)) if kind == "ints" else str(value)]
    return found


def native_flags(native: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's own arguments, looked over.

    Args:
        native: by the launcher's names, with underscores.

    Raises:
        InvalidConfig: names the option, and the field to use instead.
    """
    for name, value in native.items():
        field = f"native.{name}"
        if name in OWNED:
            instead = f"use {OWNED[name]}" if OWNED[name] else "anyengine sets it, and depends on it"
            raise InvalidConfig(f"{field}: {instead}", field=field)
        if name in INEFFECTIVE:
            raise InvalidConfig(f"{field}: has no effect; {INEFFECTIVE[name]}", field=field)
        if name not in ARGUMENTS:
            raise InvalidConfig(f"{field}: {PROGRAM} has no argument of that name", field=field)
        if not _fits(ARGUMENTS[name], value):
            kind = ARGUMENTS[name]
            raise InvalidConfig(f"{field}: {PROGRAM} takes {kind} there, not {value!r}", field=field)
    return dict(native)


def _fits(kind: Kind, value: object) -> bool:
    if kind in {"ints", "strs"}:
        each: Kind = "int" if kind == "ints" else "str"
        return isinstance(value, (list, tuple)) and all(_fits(each, part) for part in cast("list[object]", value))
    return isinstance(value, _TYPES[kind]) and (kind in {"flag", "bool"} or not isinstance(value, bool))
