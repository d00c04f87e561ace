"""Checkpoints in the compressed-tensors format: which of them are read, and how their tensors become weights.

https://github.com/vllm-project/compressed-tensors. Of a quantized matrix ``weight`` a file has, in format

- "pack-quantized": ``weight_packed`` int32 [outputs, ceil(inputs * bits / 32)], ``weight_shape`` int64 [2], and where
  zero points are not zero ``weight_zero_point`` int32 [ceil(outputs * bits / 32), groups], packed along the outputs,
- "int-quantized": ``weight`` int8 [outputs, inputs],
- "float-quantized": the same in e4m3,

and in each ``weight_scale`` [outputs, groups] in the dtype of the model, and ``weight_g_idx`` int32 [inputs] where the
inputs are grouped in another order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from .checkpoint import Checkpoint, Tensor
from .errors import BadCheckpoint, UnsupportedModel
from .integers import E4M3, dequantize, quantize, rounded_scale, scale_float32, unpack
from .ops import FloatArray

__all__ = ["QuantizedWeights", "Stored", "is_quantizable", "quantization_config", "read_config"]

_PROJECTIONS = tuple(f".{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
_FORMATS: dict[str, Literal["int8", "fp8"] | None] = {
    "pack-quantized": None,
    "int-quantized": "int8",
    "float-quantized": "fp8",
}
"""Format → what rows are rounded to."""
_READS = (
    "The reference engine reads compressed-tensors: 'pack-quantized' in 4 or 8 bits by channel or "
    "group with activations in float (int4-w4a16, int8-w8a16), and 'int-quantized' or 'float-quantized' in 8 bits by "
    "channel with 8-bit activations of the same kind by token (int8-w8a8, fp8-dynamic)."
)


@dataclass(frozen=True, slots=True)
class Stored:
    """How the weights of a checkpoint are stored.

    Attributes:
        bits: of a weight, 4 or 8.
        group_size: inputs that share a scale; None for all of a row.
        packed: whether several share a word.
        symmetric: whether zero points are zero.
        rows: the element type, ``int8`` or ``fp8``, that a row is rounded to before a product with it; that is the
            type of the weights too. None: activations and weights as `bits` says, in float and integers.
    """

    bits: int
    group_size: int | None = None
    packed: bool = True
    symmetric: bool = True
    rows: Literal["int8", "fp8"] | None = None

    @property
    def scheme(self) -> str:
        """Its name."""
        if self.rows == "fp8":
            return "fp8-dynamic"
        return f"int{self.bits}-w{self.bits}a{8 if self.rows else 16}"


def is_quantizable(name: str) -> bool:
    """Tell whether a tensor is the matrix of a projection; embeddings, output projection, norms and biases stay as
    they are.
    """
    return name.startswith("model.layers.") and name.endswith(_PROJECTIONS)


def quantization_config(stored: Stored) -> dict[str, Any]:
    """Return the ``quantization_config`` that says so in a ``config.json``."""
    weights: dict[str, Any] = {
        "num_bits": stored.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if stored.group_size else "channel",
        "group_size": stored.group_size,
        "dynamic": False,
        "actorder": None,
    }
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    form = "pack-quantized" if stored.packed else "int-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": form,
                "weights": weights,
                "input_activations": rows if stored.rows else None,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def read_config(config: Mapping[str, Any]) -> Stored | None:
    """Return how a ``config.json`` says that the weights are stored; None without a quantization.

    Raises:
        UnsupportedModel: in a way that is not read here; the message has the settings that are not.
    """
    stated: Any = config.get("quantization_config")
    if stated is None:
        return None
    found = cast("Mapping[str, Any]", stated)
    problems: list[str] = []
    if found.get("quant_method") != "compressed-tensors":
        problems.append(f"quant_method is {found.get('quant_method')!r}")
    if found.get("format") not in _FORMATS:
        problems.append(f"format is {found.get('format')!r}")
    problems += [f"{name} is set" for name in ("kv_cache_scheme", "transform_config") if found.get(name)]
    groups = cast("Mapping[str, Mapping[str, Any]]", found.get("config_groups") or {})
    stores: set[Stored] = set()
    for label, group in groups.items():
        problems += [f"{label} has {problem}" for problem in _group_problems(group, found.get("format"))]
        if not problems:
            stores.add(_stored(group, str(found["format"])))
    if not groups:
        problems.append("there are no config_groups")
    if len(stores) > 1:
        problems.append(f"the layers differ: {', '.join(sorted(store.scheme for store in stores))}")
    if problems:
        raise UnsupportedModel(f"config.json: quantization_config: {'; '.join(problems)}. {_READS}")
    return stores.pop()


def _group_problems(group: Mapping[str, Any], form: object) -> list[str]:
    """What of a group of layers is not read."""
    weights = cast("Mapping[str, Any]", group.get("weights") or {})
    rows = cast("Mapping[str, Any]", group.get("input_activations") or {})
    packed = form == "pack-quantized"
    kind = "float" if form == "float-quantized" else "int"
    bits, strategies = ((4, 8), ("channel", "group")) if packed else ((8,), ("channel",))
    problems = [
        f"weights of {name} {weights.get(name)!r}"
        for name, allowed in (("num_bits", bits), ("type", (kind,)), ("strategy", strategies))
        if weights.get(name) not in allowed
    ]
    if not packed and not weights.get("symmetric"):
        problems.append(f"weights of symmetric {weights.get('symmetric')!r}")
    wanted = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    if rows and packed:
        problems.append("input_activations")
    if not packed:
        problems += [
            f"input_activations of {name} {rows.get(name)!r}" for name, want in wanted.items() if rows.get(name) != want
        ]
    return problems + (["output_activations"] if group.get("output_activations") else [])


def _stored(group: Mapping[str, Any], form: str) -> Stored:
    weights = group["weights"]
    return Stored(
        bits=weights["num_bits"],
        group_size=weights.get("group_size") if weights["strategy"] == "group" else None,
        packed=form == "pack-quantized",
        symmetric=bool(weights["symmetric"]),
        rows=_FORMATS[form],
    )


class QuantizedWeights:
    """The tensors of a checkpoint with its projections as the float32 values ``q * scale`` of integers.

    Those of a quantized checkpoint are read, those of another rounded to 8 bits by row as `quantize_checkpoint` does,
    to the same bits.
    """

    def __init__(self, checkpoint: Checkpoint, stored: Stored | None) -> None:
        """Wrap `checkpoint`; without `stored` it is one in float."""
        self._checkpoint = checkpoint
        self._stored = stored

    def rounded(self, name: str) -> str | None:
        """Return the element type that rows are rounded to before a product with this matrix; None for none."""
        return self._stored.rows if self._stored is not None and f"{name}_scale" in self._checkpoint else None

    def read(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return a tensor as float32. Raises `BadCheckpoint` if it is missing, damaged or has another shape."""
        if not is_quantizable(name):
            return self._checkpoint.read(name, shape)
        if self._stored is None:
            return self._rounded(name, shape)
        if f"{name}_scale" not in self._checkpoint:  # a layer that the quantizer was told to leave
            return self._checkpoint.read(name, shape)
        return self._integers(self._stored, name, shape)

    def _rounded(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        weight = self._checkpoint.read(name, shape)
        try:
            scale = scale_float32(rounded_scale(weight, self._checkpoint[name].dtype))
        except ValueError as error:
            raise BadCheckpoint(f"{self._checkpoint[name].file.name}: tensor {name!r}: {error}.") from error
        return dequantize(quantize(weight, scale), scale)

    def _integers(self, stored: Stored, name: str, shape: tuple[int, ...]) -> FloatArray:
        outputs, inputs = shape
        if stored.group_size is not None and inputs % stored.group_size:
            raise BadCheckpoint(
                f"{self._checkpoint[f'{name}_scale'].file.name}: tensor {name!r} has {inputs} inputs, which groups of "
                f"{stored.group_size} do not divide."
            )
        groups = inputs // stored.group_size if stored.group_size else 1
        scale = self._checkpoint.read(f"{name}_scale", (outputs, groups))
        if stored.rows == "fp8":
            return E4M3[self._stored_as(name, "F8_E4M3", shape).data()] * scale
        if not stored.packed:
            return dequantize(self._stored_as(name, "I8", shape).data(), scale)
        words = -(-inputs * stored.bits // 32)
        packed = self._stored_as(f"{name}_packed", "I32", (outputs, words))
        values = unpack(packed.data(), inputs, bits=stored.bits)
        columns = self._columns(name, inputs, groups)
        if not stored.symmetric:
            rows = -(-outputs * stored.bits // 32)
            zeros = self._stored_as(f"{name}_zero_point", "I32", (rows, groups)).data()
            zero = unpack(zeros.T, outputs, bits=stored.bits).T
            spread = zero[:, columns] if columns is not None else np.repeat(zero, inputs // groups, axis=1)
            # Differences of two values of 8 bits need 9.
            return dequantize(values.astype(np.int16) - spread, scale, columns)  # pyright: ignore[reportArgumentType]
        return dequantize(values, scale, columns)

    def _columns(self, name: str, inputs: int, groups: int) -> np.ndarray[Any, Any] | None:
        if f"{name}_g_idx" not in self._checkpoint:
            return None
        tensor = self._stored_as(f"{name}_g_idx", "I32", (inputs,))
        columns = tensor.data()
        if columns.min() < 0 or columns.max() >= groups:
            raise BadCheckpoint(f"{tensor.file.name}: tensor {tensor.name!r} names a group outside 0 to {groups - 1}.")
        return columns

    def _stored_as(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise BadCheckpoint(
                f"{tensor.file.name}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; "
                f"by config.json it should be {dtype} {list(shape)}."
            )
        return tensor
