"""From a checkpoint folder to a quantized one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anyengine_reference.model.checkpoint import Checkpoint, Tensor, as_stored, read_json, write_safetensors
from anyengine_reference.model.compressed import Stored, is_quantizable, quantization_config
from anyengine_reference.model.config import ModelConfig
from anyengine_reference.model.errors import BadCheckpoint, UnsupportedModel
from anyengine_reference.model.integers import pack, quantize, rounded_scale, scale_float32
from anyengine_reference.quantize.smooth import STRENGTH, Factor, smoothing_factors

__all__ = ["CALIBRATED", "SCHEMES", "QuantizationCancelled", "QuantizedCheckpoint", "quantize_checkpoint"]

_GROUPED = Stored(4, group_size=128)
SCHEMES = {
    "int8-w8a16": Stored(8),
    "int8-w8a8": Stored(8, packed=False, rows="int8"),
    "int4-w4a16": _GROUPED,
}
"""What `quantize_checkpoint` can write."""
CALIBRATED = frozenset({"int8-w8a8"})
"""Those of them that look at what the model does with some text."""
_GROUP_SIZES = (128, 64, 32)
"""Those that engines have kernels for; the largest that divides the inputs of every matrix is taken."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


class QuantizationCancelled(Exception):
    """The caller asked to stop."""


@dataclass(frozen=True, slots=True)
class QuantizedCheckpoint:
    """What was written.

    Attributes:
        folder: where.
        stored: how.
        smoothing: strength of the smoothing before; None without.
        quantized: names of the tensors that are integers now.
        source_bytes: of the source's tensors.
        output_bytes: of those that were written.
    """

    folder: Path
    stored: Stored
    smoothing: float | None
    quantized: tuple[str, ...]
    source_bytes: int
    output_bytes: int


def quantize_checkpoint(
    source: Path,
    output: Path,
    scheme: str,
    *,
    calibration: Sequence[Sequence[int]] = (),
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> QuantizedCheckpoint:
    """Round the weights of the checkpoint in `source` and write the result into `output`.

    The output is a Hugging Face checkpoint in the compressed-tensors format that vLLM and transformers read, its files
    named as the source's. The projections of attention and MLP are quantized; embeddings, output projection, norms and
    biases stay as they are, and so do tokenizer and other files.

    Args:
        source: folder of an unquantized checkpoint of a family that `ModelConfig` knows.
        output: an empty folder, or one to make; what was written before an error stays in it.
        scheme: one of `SCHEMES`. ``int8-w8a16``: weights as 8-bit integers with one scale an output; ``int8-w8a8``: the
            same, and the engine rounds activations to 8 bits; ``int4-w4a16``: weights as 4-bit integers with one scale
            for 128 inputs of an output, or for 64 or 32 where 128 does not divide them. Scales have the dtype of the
            weight. All round to nearest.
        calibration: token ids; ``int8-w8a8`` smooths the activations that the model has on these (`smooth`).
        progress: called with the numbers of sequences run and tensors written, and of all, after each.
        cancelled: asked before each; true ends the work.

    Raises:
        ValueError: an unknown scheme.
        FileExistsError: `output` is there and not empty.
        UnsupportedModel: another architecture, the source is quantized already, or no group size fits.
        BadCheckpoint: the source is damaged or incomplete, or has a weight that is not finite.
        QuantizationCancelled: `cancelled` returned true.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"The scheme is {scheme!r}; the reference engine writes {', '.join(SCHEMES)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: is there already and not an empty folder; name another output.")
    config = read_json(source / "config.json")
    model_config = ModelConfig.from_dict(config)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(f"{source}: is quantized already; quantize the checkpoint that it was made from.")
    checkpoint = Checkpoint(source)
    quantized = tuple(name for name in checkpoint if is_quantizable(name))
    stored = _fitted(SCHEMES[scheme], [checkpoint[name] for name in quantized])
    output.mkdir(parents=True, exist_ok=True)
    _copy_others(source, output)
    steps = _Steps(len(calibration) + len(checkpoint), progress, cancelled)
    factors: dict[str, Factor] = {}
    if scheme in CALIBRATED and calibration:
        factors = smoothing_factors(model_config, checkpoint, calibration, steps.done)
    written = _Writer(checkpoint, stored, factors, steps).write(output)
    content = json.dumps({**config, "quantization_config": quantization_config(stored)}, indent=2)
    (output / "config.json").write_text(content + "\n", "utf-8")
    before = sum(tensor.nbytes for tensor in checkpoint.values())
    return QuantizedCheckpoint(output, stored, STRENGTH if factors else None, quantized, before, written)


def _fitted(stored: Stored, tensors: Sequence[Tensor]) -> Stored:
    """With a group size that divides the inputs of every matrix."""
    for tensor in tensors:
        if len(tensor.shape) != 2 or tensor.dtype not in {"F32", "F16", "BF16"}:  # noqa: PLR2004 - a matrix
            raise BadCheckpoint(
                f"{tensor.file.name}: tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, no float matrix."
            )
    if stored.group_size is None:
        return stored
    sizes = sorted({tensor.shape[1] for tensor in tensors})
    for group_size in _GROUP_SIZES:
        if not any(size % group_size for size in sizes):
            return replace(stored, group_size=group_size)
    raise UnsupportedModel(
        f"Matrices of {', '.join(map(str, sizes))} inputs cannot be cut into groups of {_GROUP_SIZES}; "
        "int8-w8a16 and int8-w8a8 need no groups."
    )


def _copy_others(source: Path, target: Path) -> None:
    """Copy what lies beside the weights: tokenizer, chat template, generation config, licence."""
    for file in source.iterdir():
        weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name != "config.json":
            shutil.copyfile(file, target / file.name)


class _Steps:
    """Counts what was done, and ends the work when it was cancelled."""

    def __init__(
        self, total: int, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None
    ) -> None:
        self._total = total
        self._progress = progress
        self._cancelled = cancelled
        self._count = 0
        self.check()

    def check(self) -> None:
        """Raise `QuantizationCancelled` if that was asked for."""
        if self._cancelled is not None and self._cancelled():
            raise QuantizationCancelled

    def done(self) -> None:
        """Count one."""
        self._count += 1
        if self._progress is not None:
            self._progress(self._count, self._total)
        self.check()


class _Writer:
    """Writes a file for each of the source's, and an index if there are several."""

    def __init__(self, checkpoint: Checkpoint, stored: Stored, factors: Mapping[str, Factor], steps: _Steps) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._factors = factors
        self._steps = steps

    def write(self, folder: Path) -> int:
        """Return the bytes of all tensors."""
        places: dict[str, str] = {}
        written = 0
        for file in self._checkpoint.files:
            tensors = [tensor for tensor in self._checkpoint.values() if tensor.file == file]
            layout = {name: entry for tensor in tensors for name, entry in self._layout(tensor).items()}
            written += write_safetensors(folder / file.name, layout, self._all(tensors))
            places.update(dict.fromkeys(layout, file.name))
        if len(self._checkpoint.files) > 1:
            index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(places.items()))}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + os.linesep, "utf-8")
        return written

    def _all(self, tensors: list[Tensor]) -> Iterator[np.ndarray[Any, Any]]:
        for tensor in tensors:
            yield from self._arrays(tensor)
            self._steps.done()

    def _layout(self, tensor: Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return names, dtypes and shapes of what a tensor becomes."""
        if not is_quantizable(tensor.name):
            return {tensor.name: (tensor.dtype, tensor.shape)}
        outputs, inputs = tensor.shape
        groups = inputs // self._stored.group_size if self._stored.group_size else 1
        scale = {f"{tensor.name}_scale": (tensor.dtype, (outputs, groups))}
        if not self._stored.packed:
            return {tensor.name: ("I8", tensor.shape), **scale}
        words = -(-inputs * self._stored.bits // 32)
        return {
            f"{tensor.name}_packed": ("I32", (outputs, words)),
            **scale,
            f"{tensor.name}_shape": ("I64", (2,)),
        }

    def _arrays(self, tensor: Tensor) -> Iterator[np.ndarray[Any, Any]]:
        """Return the data of what a tensor becomes, in the order of `_layout`."""
        factor = self._factors.get(tensor.name)
        if not is_quantizable(tensor.name):
            # A product with powers of two: exact, in whatever dtype it is stored.
            yield tensor.data() if factor is None else as_stored(factor(tensor.float32()), tensor.dtype)
            return
        weight, bits = tensor.float32(), self._stored.bits
        if factor is not None:
            weight = factor(weight)
        try:
            scale = rounded_scale(weight, tensor.dtype, bits=bits, group_size=self._stored.group_size)
        except ValueError as error:
            raise BadCheckpoint(f"{tensor.file.name}: tensor {tensor.name!r}: {error}.") from error
        values = quantize(weight, scale_float32(scale), bits=bits)
        yield pack(values, bits=bits) if self._stored.packed else values
        yield scale
        if self._stored.packed:
            yield np.array(tensor.shape, "<i8")
