"""Looking weights over before they are loaded: safetensors only, whole files, no missing shards. Reads no tensor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_weights"]

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")
#: The largest header that safetensors itself accepts, in bytes.
_MAX_HEADER = 100_000_000


def check_weights(folder: Path) -> None:
    """Refuse a checkpoint without safetensors, with shards missing, or with truncated files.

    Raises:
        ModelNotFound: names the file, and what to do.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(_shards(index) - {file.name for file in files})
        if missing:
            raise ModelNotFound(f"{index} names shards that are not there: {', '.join(missing)}", field="model")
    if not files:
        pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
        if pickled:
            raise ModelNotFound(
                f"{folder} has only pickled weights ({', '.join(pickled[:3])}), which can run any code when they are "
                "read and are refused; convert them where you trust them: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)",
                field="model",
            )
        raise ModelNotFound(
            f"{folder} has no weights: no *.safetensors file (pickled weights are never fetched from a hub)",
            field="model",
        )
    for file in files:
        _check_whole(file)


def _shards(index: Path) -> set[str]:
    try:
        names: Any = json.loads(index.read_bytes())["weight_map"].values()
        return {str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"{index} cannot be read: {type(error).__name__}: {error}", field="model") from error


def _check_whole(file: Path) -> None:
    """Compare a file's length with what its header promises (https://huggingface.co/docs/safetensors#format)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):  # noqa: PLR2004 the header's length has 8 bytes
                raise ModelNotFound(f"{file} is truncated or no safetensors file; fetch it again", field="model")
            header: Any = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{file} has a broken header; fetch it again", field="model") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelNotFound(f"{file} has {size} bytes, and its header says {expected}; fetch it again", field="model")
