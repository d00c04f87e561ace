"""Hugging Face checkpoints: ``config.json`` and safetensors files, alone or sharded. Pickled weights are never read."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from .errors import BadCheckpoint
from .ops import FloatArray

__all__ = ["Checkpoint", "Tensor", "as_stored", "read_json", "tensors_of", "write_safetensors"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is: `dtype` is the format's name of it, `offset` is counted from the beginning of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize

    def data(self) -> np.ndarray[Any, Any]:
        """Return the data as stored, mapped from the file; BF16 as its 16 bits."""
        if not self.nbytes:
            return np.empty(self.shape, _DTYPES[self.dtype])
        return np.memmap(self.file, _DTYPES[self.dtype], "r", self.offset, self.shape)

    def float32(self) -> FloatArray:
        """Return the data as float32, which holds every value of F32, F16 and BF16 exactly.

        Raises:
            BadCheckpoint: another dtype.
        """
        if self.dtype == "BF16":  # bfloat16 is the upper half of float32
            return (self.data().astype(np.uint32) << 16).view(np.float32)
        if self.dtype not in {"F16", "F32"}:
            raise BadCheckpoint(
                f"{self.file.name}: tensor {self.name!r} is {self.dtype}; it should be F32, F16 or BF16."
            )
        return self.data().astype(np.float32)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint folder, by name; only the files' headers are read on opening."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`.

        Raises:
            BadCheckpoint: no safetensors in it, or a file that is damaged; names the file.
        """
        self.folder = folder
        self.files = _files(folder)
        self._tensors = {tensor.name: tensor for file in self.files for tensor in tensors_of(file)}

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor's place. Raises `BadCheckpoint` if there is no such tensor."""
        try:
            return self._tensors[name]
        except KeyError:
            raise BadCheckpoint(f"{self.folder}: tensor {name!r} is missing.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return a tensor as float32.

        Raises:
            BadCheckpoint: it is missing, has another shape or is not a float tensor.
        """
        tensor = self[name]
        if tensor.shape != shape:
            raise BadCheckpoint(
                f"{tensor.file.name}: tensor {name!r} has the shape {list(tensor.shape)}; "
                f"by config.json it should be {list(shape)}."
            )
        return tensor.float32()


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `BadCheckpoint` if there is none."""
    try:
        content: Any = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{file}: not found; a checkpoint folder has one.") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file}: not readable as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{file}: does not hold a JSON object.")
    return cast("dict[str, Any]", content)


def as_stored(values: FloatArray, dtype: str) -> np.ndarray[Any, Any]:
    """Return float32 as F32, F16 or BF16 is stored; the values must be exact in it."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values.astype(_DTYPES[dtype])


def write_safetensors(
    file: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], arrays: Iterable[np.ndarray[Any, Any]]
) -> int:
    """Write a safetensors file, one tensor in memory at a time; return the bytes of all tensors.

    Args:
        file: the file to make.
        layout: dtype and shape of each tensor by name.
        arrays: their data in the same order; BF16 as 16 bits.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (dtype, shape), array in zip(layout.values(), arrays, strict=True):
            stream.write(np.ascontiguousarray(array, _DTYPES[dtype]).reshape(shape).data)
    return end


def _files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        shards: Any = read_json(folder / _INDEX).get("weight_map")
        names = list(cast("dict[str, Any]", shards).values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise BadCheckpoint(f"{folder / _INDEX}: weight_map should name a file of this folder for each tensor.")
        return [folder / name for name in sorted(set(names))]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        raise BadCheckpoint(
            f"{folder}: the weights are pickled ({', '.join(pickled)}), and unpickling runs code that the file brings. "
            "Only safetensors are read: convert them with save_pretrained of transformers where you trust them."
        )
    raise BadCheckpoint(f"{folder}: has neither {_SINGLE} nor {_INDEX}.")


def tensors_of(file: Path) -> Iterator[Tensor]:
    """Read what tensors a file has: https://github.com/huggingface/safetensors, "Format"."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:  # noqa: PLR2004 - the length of the header takes 8 bytes
                raise BadCheckpoint(f"{file}: is cut off within its header.")
            header: Any = json.loads(stream.read(length))
    except OSError as error:
        raise BadCheckpoint(f"{file}: not readable: {error.strerror}.") from error
    except ValueError as error:
        if isinstance(error, BadCheckpoint):
            raise
        raise BadCheckpoint(f"{file}: its header is not JSON: {error}.") from error
    if not isinstance(header, dict):
        raise BadCheckpoint(f"{file}: its header is not a JSON object.")
    for name, entry in cast("dict[str, Any]", header).items():
        if name != "__metadata__":
            yield _entry(file, name, entry, 8 + length, size)


def _entry(file: Path, name: str, entry: Any, data: int, size: int) -> Tensor:
    try:
        begin, end = (int(offset) for offset in entry["data_offsets"])
        tensor = Tensor(name, file, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), data + begin)
        fits = 0 <= begin <= end and end - begin == tensor.nbytes and all(n >= 0 for n in tensor.shape)
    except KeyError as error:
        raise BadCheckpoint(f"{file}: tensor {name!r} has an entry without or with an unknown {error}.") from error
    except (TypeError, ValueError) as error:
        raise BadCheckpoint(f"{file}: tensor {name!r} has an entry that cannot be read: {error}.") from error
    if not fits:
        raise BadCheckpoint(f"{file}: tensor {name!r} has a shape, dtype and offsets that do not go together.")
    if data + end > size:
        raise BadCheckpoint(f"{file}: is cut off: tensor {name!r} ends at byte {data + end}, the file at {size}.")
    return tensor
