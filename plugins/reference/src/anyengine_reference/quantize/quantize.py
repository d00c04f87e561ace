"""From a checkpoint folder to a quantized one."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyengine_reference.model.checkpoint import Checkpoint, Tensor, read_json, write_safetensors
from anyengine_reference.model.config import ModelConfig
from anyengine_reference.model.errors import BadCheckpoint, UnsupportedModel
from anyengine_reference.model.int8 import PACKED_CONFIG, is_quantizable, pack, quantize, rounded_scale, scale_float32

__all__ = ["SCHEMES", "QuantizationCancelled", "QuantizedCheckpoint", "quantize_checkpoint"]

SCHEMES = ("int8-w8a16",)
"""What `quantize_checkpoint` can write."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


class QuantizationCancelled(Exception):
    """The caller asked to stop; nothing was left behind."""


@dataclass(frozen=True, slots=True)
class QuantizedCheckpoint:
    """What was written: the folder, the scheme, the names of the tensors that are integers now, and bytes of
    weights.
    """

    folder: Path
    scheme: str
    quantized: tuple[str, ...]
    source_bytes: int
    output_bytes: int


def quantize_checkpoint(
    source: Path,
    output: Path,
    scheme: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> QuantizedCheckpoint:
    """Round the weights of the checkpoint in `source` and write the result to `output`.

    The output is a Hugging Face checkpoint in the compressed-tensors format that vLLM and transformers read, its files
    named as the source's. The projections of attention and MLP are quantized; embeddings, output projection, norms and
    biases stay as they are, and so do tokenizer and other files. It is written beside `output` and moved there when it
    is whole.

    Args:
        source: folder of an unquantized checkpoint of a family that `ModelConfig` knows.
        output: folder to make; may exist if it is empty.
        scheme: ``int8-w8a16``: weights as 8-bit integers with one scale an output, in the dtype of the weight;
            activations in float.
        progress: called with the numbers of tensors written and of all after each.
        cancelled: asked before each tensor; true ends the work.

    Raises:
        ValueError: an unknown scheme.
        FileExistsError: `output` is there and not empty.
        UnsupportedModel: another architecture, or the source is quantized already.
        BadCheckpoint: the source is damaged or incomplete, or has a weight that is not finite.
        QuantizationCancelled: `cancelled` returned true.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"The scheme is {scheme!r}; the reference engine writes {', '.join(SCHEMES)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: is there already and not an empty folder; name another output.")
    config = read_json(source / "config.json")
    ModelConfig.from_dict(config)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(f"{source}: is quantized already; quantize the checkpoint that it was made from.")
    checkpoint = Checkpoint(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _copy_others(source, unfinished)
        written = _write(checkpoint, unfinished, progress, cancelled)
        content = json.dumps({**config, "quantization_config": PACKED_CONFIG}, indent=2)
        (unfinished / "config.json").write_text(content + "\n", "utf-8")
        unfinished.chmod(source.stat().st_mode & 0o777)
        if output.exists():
            output.rmdir()
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    quantized = tuple(name for name in checkpoint if is_quantizable(name))
    return QuantizedCheckpoint(output, scheme, quantized, sum(tensor.nbytes for tensor in checkpoint.values()), written)


def _copy_others(source: Path, target: Path) -> None:
    """Copy what lies beside the weights: tokenizer, chat template, generation config, licence."""
    for file in source.iterdir():
        weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name != "config.json":
            shutil.copyfile(file, target / file.name)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> int:
    """Write a file for each of the source's, and an index if there are several; return the bytes of all tensors."""
    places: dict[str, str] = {}
    done = written = 0
    for file in checkpoint.files:
        tensors = [tensor for tensor in checkpoint.values() if tensor.file == file]
        layout = {name: entry for tensor in tensors for name, entry in _layout(tensor).items()}

        def arrays(tensors: list[Tensor] = tensors) -> Iterator[np.ndarray[Any, Any]]:
            nonlocal done
            for tensor in tensors:
                if cancelled is not None and cancelled():
                    raise QuantizationCancelled
                yield from _arrays(tensor)
                done += 1
                if progress is not None:
                    progress(done, len(checkpoint))

        written += write_safetensors(folder / file.name, layout, arrays())
        places.update(dict.fromkeys(layout, file.name))
    if len(checkpoint.files) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + os.linesep, "utf-8")
    return written


def _layout(tensor: Tensor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return names, dtypes and shapes of what a tensor becomes."""
    if not is_quantizable(tensor.name):
        return {tensor.name: (tensor.dtype, tensor.shape)}
    if len(tensor.shape) != 2 or tensor.dtype not in {"F32", "F16", "BF16"}:  # noqa: PLR2004 - a matrix
        raise BadCheckpoint(
            f"{tensor.file.name}: tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, no float matrix."
        )
    outputs, inputs = tensor.shape
    return {
        f"{tensor.name}_packed": ("I32", (outputs, -(-inputs // 4))),
        f"{tensor.name}_scale": (tensor.dtype, (outputs, 1)),
        f"{tensor.name}_shape": ("I64", (2,)),
    }


def _arrays(tensor: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """Return the data of what a tensor becomes, in the order of `_layout`."""
    if not is_quantizable(tensor.name):
        yield tensor.data()
        return
    weight = tensor.float32()
    try:
        scale = rounded_scale(weight, tensor.dtype)
    except ValueError as error:
        raise BadCheckpoint(f"{tensor.file.name}: tensor {tensor.name!r}: {error}.") from error
    yield pack(quantize(weight, scale_float32(scale)))
    yield scale
    yield np.array(tensor.shape, "<i8")
