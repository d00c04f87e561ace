"""Weights as 8-bit integers with one scale an output: rounding, and the layout that compressed-tensors gives them in a
file.

``weight ≈ q * scale``, symmetric round to nearest: https://arxiv.org/abs/2106.08295, section 2.2. The layout is that of
format "pack-quantized" with ``num_bits`` 8, https://github.com/vllm-project/compressed-tensors: ``weight_packed`` int32
[outputs, inputs / 4], four values plus 128 in a word, the first in the lowest byte; ``weight_scale`` [outputs, 1] in
the dtype of the model; ``weight_shape`` int64 [2].
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from .checkpoint import Checkpoint
from .errors import BadCheckpoint, UnsupportedModel
from .ops import FloatArray

__all__ = [
    "PACKED_CONFIG",
    "Int8Weights",
    "check_config",
    "is_quantizable",
    "pack",
    "quantize",
    "rounded_scale",
    "unpack",
]

_LIMIT = 127
_WORD = 4
_PROJECTIONS = tuple(f".{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))

PACKED_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "group_size": None,
                "dynamic": False,
                "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}
"""The ``quantization_config`` that says so in a ``config.json``."""


def is_quantizable(name: str) -> bool:
    """Tell whether a tensor is the matrix of a projection; embeddings, output projection, norms and biases stay as
    they are.
    """
    return name.startswith("model.layers.") and name.endswith(_PROJECTIONS)


def rounded_scale(weight: FloatArray, dtype: str) -> np.ndarray[Any, Any]:
    """Return the scale of each row, [outputs, 1]: the least value of `dtype` (F32, F16, BF16) from ``max |w| / 127``
    up.

    Rounded up, so that no quotient exceeds 127; never zero. BF16 comes as its 16 bits.

    Raises:
        ValueError: a weight is not finite.
    """
    exact = np.abs(weight).max(1, keepdims=True) / np.float32(_LIMIT)
    if not np.isfinite(exact).all():
        raise ValueError("a weight is not finite")
    exact = np.maximum(exact, np.float32(2.0**-126))
    if dtype == "F32":
        return exact
    if dtype == "BF16":
        return ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
    near: np.ndarray[Any, Any] = exact.astype(np.float16)
    return np.where(near.astype(np.float32) < exact, np.nextafter(near, np.float16(np.inf)), near)


def scale_float32(scale: np.ndarray[Any, Any]) -> FloatArray:
    """Return a scale as float32."""
    if scale.dtype == np.uint16:
        return (scale.astype(np.uint32) << 16).view(np.float32)
    return scale.astype(np.float32)


def quantize(weight: FloatArray, scale: FloatArray) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return ``round(weight / scale)``, ties to even, within -127 to 127: int8 of float32 [outputs, inputs] and
    [outputs, 1].
    """
    return np.clip(np.rint(weight / scale), -_LIMIT, _LIMIT).astype(np.int8)


def pack(values: np.ndarray[Any, np.dtype[np.int8]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return int32 [outputs, ceil(inputs / 4)] of int8 [outputs, inputs]."""
    rows, columns = values.shape
    packed = np.zeros((rows, -(-columns // _WORD) * _WORD), np.uint8)
    packed[:, :columns] = values.view(np.uint8) ^ 0x80  # plus 128
    return packed.view("<i4")


def unpack(packed: np.ndarray[Any, Any], columns: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return int8 [outputs, columns]: the reverse of `pack`."""
    stored = np.ascontiguousarray(packed, "<i4").view(np.uint8)[:, :columns]
    return (stored ^ 0x80).view(np.int8)


def check_config(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of a checkpoint in this format; no quantization at all is false.

    Raises:
        UnsupportedModel: quantized in another way; the message has the settings that differ.
    """
    stated: Any = config.get("quantization_config")
    if stated is None:
        return False
    found = cast("Mapping[str, Any]", stated)
    wanted = PACKED_CONFIG["config_groups"]["group_0"]["weights"]
    names = ("num_bits", "type", "symmetric", "strategy")
    problems = [
        f"{key} is {found.get(key)!r}" for key in ("quant_method", "format") if found.get(key) != PACKED_CONFIG[key]
    ]
    groups = cast("Mapping[str, Any]", found.get("config_groups") or {})
    for label, group in groups.items():
        weights = cast("Mapping[str, Any]", group.get("weights") or {})
        problems += [f"{label} has weights of {n} {weights.get(n)!r}" for n in names if weights.get(n) != wanted[n]]
        problems += [f"{label} has {n}" for n in ("input_activations", "output_activations") if group.get(n)]
    problems += ["kv_cache_scheme is set"] if found.get("kv_cache_scheme") else []
    if problems:
        raise UnsupportedModel(
            f"config.json: quantization_config: {'; '.join(problems)}. The reference engine reads compressed-tensors "
            "in format 'pack-quantized': symmetric 8-bit integers by channel, the rest in float (int8-w8a16)."
        )
    return True


class Int8Weights:
    """The tensors of a checkpoint with its projections as the float32 values ``q * scale`` of 8-bit integers.

    Those of a quantized checkpoint are read, those of another rounded as `quantize_checkpoint` does, to the same bits.
    """

    def __init__(self, checkpoint: Checkpoint, *, packed: bool) -> None:
        """Wrap `checkpoint`; `packed` says that it is quantized: what is a float tensor there stays one."""
        self._checkpoint = checkpoint
        self._packed = packed

    def read(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return a tensor as float32. Raises `BadCheckpoint` if it is missing, damaged or has another shape."""
        if not is_quantizable(name):
            return self._checkpoint.read(name, shape)
        if f"{name}_packed" in self._checkpoint:
            return self._unpacked(name, shape)
        if self._packed:  # a layer that the quantizer was told to leave
            return self._checkpoint.read(name, shape)
        weight = self._checkpoint.read(name, shape)
        try:
            scale = scale_float32(rounded_scale(weight, self._checkpoint[name].dtype))
        except ValueError as error:
            raise BadCheckpoint(f"{self._checkpoint[name].file.name}: tensor {name!r}: {error}.") from error
        return quantize(weight, scale) * scale

    def _unpacked(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        outputs, inputs = shape
        packed = self._checkpoint[f"{name}_packed"]
        expected = (outputs, -(-inputs // _WORD))
        if packed.shape != expected or packed.dtype != "I32":
            raise BadCheckpoint(
                f"{packed.file.name}: tensor {packed.name!r} is {packed.dtype} {list(packed.shape)}; "
                f"by config.json it should be I32 {list(expected)}."
            )
        return unpack(packed.data(), inputs) * self._checkpoint.read(f"{name}_scale", (outputs, 1))
