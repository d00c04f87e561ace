"""How a checkpoint says that it is quantised, in one set of names whatever toolchain wrote it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from anyengine.backend.model_config import whole_model
from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["StoredQuantization", "read_stored"]


class StoredQuantization(Struct, frozen=True, kw_only=True):
    """How the weights of a checkpoint are stored.

    Attributes:
        method: ``quant_method``: ``compressed-tensors``, ``awq``, ``gptq``, ``fp8``, ``modelopt``, ``smooth_quant`` (of
            LMDeploy), …
        format: of compressed-tensors, and of awq, which calls it ``version``; None elsewhere.
        schemes: of its layers, sorted: ``int8-w8a16`` has weights of 8 bits and activations in float, ``int8-w8a8``
            both of 8 bits, ``fp8-dynamic`` finds the scales of activations while running, ``fp8-static`` brings them,
            ``int4-awq-fp8`` has activations in e4m3.
            ``unknown`` where the configuration says something that has no name here.
        group_sizes: inputs that share a scale, sorted; 0 for a scale of a whole row or matrix.
        symmetric: whether all zero points are zero.
        reordered: whether the inputs of a group are not neighbours: sorted by how large activations are (``desc_act``).
        kv_cache: element type that it asks for the cache; None for the model's.
    """

    method: str
    format: str | None = None
    schemes: tuple[str, ...]
    group_sizes: tuple[int, ...] = ()
    symmetric: bool = True
    reordered: bool = False
    kv_cache: str | None = None

    def __str__(self) -> str:
        groups = [f"groups of {size}" for size in self.group_sizes if size]
        method = self.method if self.format is None else f"{self.method} {self.format}"
        parts = [method, ", ".join(self.schemes), *groups]
        parts += ([] if self.symmetric else ["zero points"]) + (["reordered inputs"] if self.reordered else [])
        return ", ".join(parts + ([f"{self.kv_cache} KV cache"] if self.kv_cache else []))


def read_stored(folder: Path, config: Mapping[str, Any]) -> StoredQuantization | None:
    """How a checkpoint is quantised; None if it is not.

    Args:
        folder: of the checkpoint; ModelOpt writes a file of its own, ``hf_quant_config.json``.
        config: the contents of its config.json.

    Raises:
        ModelNotFound: what it says cannot be read.
    """
    stated: Any = whole_model(config, "quantization_config")
    try:
        found = None if stated is None else _stated(_mapping(stated))
        if found is not None and found.method != "modelopt":
            return found
        file = folder / "hf_quant_config.json"
        if not file.is_file():
            return found
        # What ModelOpt writes into config.json lacks group sizes.
        return _modelopt(_mapping(_mapping(json.loads(file.read_bytes()))["quantization"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(
            f"{folder}: how it is quantised cannot be read: {type(error).__name__}: {error}", field="model"
        ) from error


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} where an object should be")
    return cast("Mapping[str, Any]", value)


def _stated(found: Mapping[str, Any]) -> StoredQuantization:
    method = str(found.get("quant_method") or found.get("quant_algo") or "unknown").lower()
    if "quant_algo" in found and method != "compressed-tensors":
        return _modelopt(found)
    read = _READERS.get(method)
    return StoredQuantization(method=method, schemes=("unknown",)) if read is None else read(found)


def _awq_or_gptq(found: Mapping[str, Any]) -> StoredQuantization:
    method = str(found["quant_method"]).lower()
    bits = int(found["bits"] if "bits" in found else found["w_bit"])
    group = int(found.get("group_size", found.get("q_group_size", 128)))
    return StoredQuantization(
        method=method,
        # Of AutoAWQ, whose default it is where nothing is said.
        format=str(found.get("version") or "gemm").lower() if method == "awq" else None,
        schemes=(f"int{bits}-{method}",),
        group_sizes=(max(0, group),),
        symmetric=bool(found.get("sym", True)) if method == "gptq" else not found.get("zero_point", True),
        reordered=bool(found.get("desc_act")),
    )


def _bitsandbytes(found: Mapping[str, Any]) -> StoredQuantization:
    scheme = f"bitsandbytes-{4 if found.get('load_in_4bit') else 8}bit"
    return StoredQuantization(method="bitsandbytes", schemes=(scheme,))


def _fp8(found: Mapping[str, Any]) -> StoredQuantization:
    scheme = f"fp8-{found.get('activation_scheme', 'dynamic')}"
    return StoredQuantization(method="fp8", schemes=(f"{scheme}-block" if found.get("weight_block_size") else scheme,))


def _exl2(_found: Mapping[str, Any]) -> StoredQuantization:
    return StoredQuantization(method="exl2", schemes=("exl2",))  # as many bits for each matrix as were left for it


def _marlin(found: Mapping[str, Any]) -> StoredQuantization:
    group = max(0, int(found.get("group_size", 128)))
    return StoredQuantization(method="marlin", schemes=(f"int{int(found['bits'])}-marlin",), group_sizes=(group,))


def _mxfp4(_found: Mapping[str, Any]) -> StoredQuantization:
    return StoredQuantization(method="mxfp4", schemes=("mxfp4",), group_sizes=(32,))


#: ``quant_dtype`` of LMDeploy's ``smooth_quant``: of weights, and of activations by token.
_SMOOTH_QUANT = {"int8": "int8-w8a8", "float8_e4m3fn": "fp8-dynamic"}


def _smooth_quant(found: Mapping[str, Any]) -> StoredQuantization:
    scheme = _SMOOTH_QUANT.get(str(found.get("quant_dtype") or "int8"), "unknown")
    return StoredQuantization(method="smooth_quant", schemes=(scheme,), group_sizes=(0,))


def _compressed(found: Mapping[str, Any]) -> StoredQuantization:
    groups = [_mapping(group) for group in _mapping(found.get("config_groups") or {}).values()]
    weights = [_mapping(group.get("weights") or {}) for group in groups]
    sizes = {int(w.get("group_size") or 0) if w.get("strategy") in {"group", "tensor_group"} else 0 for w in weights}
    stated = found.get("kv_cache_scheme")
    cache = _element(_mapping(stated)) if stated else None
    return StoredQuantization(
        method="compressed-tensors",
        format=str(found.get("format")),
        # Where the cache is all that is quantised, that is the scheme.
        schemes=_sorted(map(_scheme, groups)) or (f"kv-{cache}" if cache else "unknown",),
        group_sizes=tuple(sorted(sizes)),
        symmetric=all(w.get("symmetric", True) for w in weights),
        # Where it says "weight" or "static" the columns were put back in their places.
        reordered=any(w.get("actorder") in {True, "group"} for w in weights),
        kv_cache=cache,
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _element(arguments: Mapping[str, Any]) -> str:
    """``int8``, ``fp8``, ``fp4``, … of a part of a scheme; a float of 8 bits is e4m3."""
    return ("fp" if arguments.get("type") == "float" else "int") + str(int(arguments["num_bits"]))


def _scheme(group: Mapping[str, Any]) -> str:
    weights = _mapping(group.get("weights") or {})
    rows = _mapping(group.get("input_activations") or {})
    if weights.get("strategy") not in {"channel", "tensor", "group", "tensor_group"}:
        return "unknown"
    element, bits = _element(weights), int(weights["num_bits"])
    if element == "fp4":  # NVIDIA's; the other formats of 4-bit floats are not told apart here
        known = weights["strategy"] == "tensor_group" and (not rows or _element(rows) == "fp4")
        return ("nvfp4" if rows else "nvfp4-w4a16") if known else "unknown"
    if not rows:
        return f"{element}-w{bits}a16"
    if element == _element(rows) == "fp8":
        return "fp8-dynamic" if rows.get("dynamic") else "fp8-static"
    if not element.startswith("int") or not _element(rows).startswith("int"):
        return "unknown"
    name = f"{element}-w{bits}a{int(rows['num_bits'])}"
    return name if rows.get("dynamic") and rows.get("symmetric", True) else f"{name}-static"


#: ``quant_algo`` of NVIDIA's ModelOpt (``export/quant_utils.py`` of 0.37).
_MODELOPT = {
    "FP8": "fp8-static",
    "FP8_BLOCK_SCALES": "fp8-dynamic-block",
    "FP8_PB_WO": "fp8-dynamic-block",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8-dynamic",
    "NVFP4": "nvfp4",
    "W4A16_AWQ": "int4-awq",
    "W4A8_AWQ": "int4-awq-fp8",
    "W8A16": "int8-w8a16",
    "W8A8_SQ_PER_CHANNEL": "int8-w8a8-static",
}


def _modelopt(found: Mapping[str, Any]) -> StoredQuantization:
    """As its own file has it, or as config.json has, where the cache is described as in compressed-tensors."""
    algorithm: object = found.get("quant_algo")
    stated: object = found.get("kv_cache_quant_algo") or found.get("kv_cache_scheme")
    cache = stated.lower() if isinstance(stated, str) else _element(_mapping(stated)) if stated else None
    groups = [_mapping(group) for group in _mapping(found.get("config_groups") or {}).values()]
    size = found.get("group_size") or (_mapping(groups[0]["weights"]).get("group_size") if groups else 0)
    return StoredQuantization(
        method="modelopt",
        # Where the cache is all that is quantised, that is the scheme.
        schemes=(f"kv-{cache}" if not algorithm and cache else _MODELOPT.get(str(algorithm).upper(), "unknown"),),
        group_sizes=(int(size or 0),),
        kv_cache=cache,
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any]], StoredQuantization]] = {
    "awq": _awq_or_gptq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "exl2": _exl2,
    "fp8": _fp8,
    "gptq": _awq_or_gptq,
    "marlin": _marlin,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "smooth_quant": _smooth_quant,
}
