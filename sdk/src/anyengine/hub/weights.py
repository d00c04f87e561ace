"""Looking weights over before they are loaded: no pickles; of safetensors whole files, no missing shards. Reads no
tensor.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.backend.weights import PICKLED, SAFETENSORS, reads_safetensors
from anyengine.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["check_weights", "find_weights", "missing_weights"]

#: Weights that some engine reads, to say what is there where this one reads others.
_OTHERS = (*SAFETENSORS, "*.gguf", "*.onnx", "openvino_*.xml")
#: The largest header that safetensors itself accepts, in bytes.
_MAX_HEADER = 100_000_000


def find_weights(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a checkpoint that any of the patterns names, in order."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def check_weights(folder: Path, patterns: Sequence[str] = SAFETENSORS) -> None:
    """Refuse a checkpoint without weights that the engine reads; safetensors with shards missing, or cut short.

    Whether files of other formats are whole is for the engine to say.

    Args:
        folder: of the checkpoint.
        patterns: of the files that the engine reads weights from; one file of any of them is enough.

    Raises:
        ModelNotFound: names the file, and what to do.
    """
    files = find_weights(folder, patterns)
    safetensors = [file for file in files if file.suffix == ".safetensors"]
    index = folder / "model.safetensors.index.json"
    # The index is fetched with the other texts, so it may lie beside weights of another format and mean nothing there.
    if index.is_file() and (safetensors or (not files and reads_safetensors(patterns))):
        shards = sorted(_shards(index) - {file.name for file in safetensors})
        if shards:
            raise ModelNotFound(f"{index} names shards that are not there: {', '.join(shards)}", field="model")
    missing = missing_weights(folder, patterns)
    if missing is not None:
        raise ModelNotFound(f"{folder} {missing}", field="model")
    for file in safetensors:
        _check_whole(file)


def missing_weights(folder: Path, patterns: Sequence[str]) -> str | None:
    """What a checkpoint has instead of weights that the engine reads; None if it has some.

    Args:
        folder: of the checkpoint.
        patterns: of the files that the engine reads weights from.
    """
    if find_weights(folder, patterns):
        return None
    wanted = " or ".join(patterns)
    others = [file.name for file in find_weights(folder, _OTHERS)]
    if others:
        return f"has no weights that the engine reads: no {wanted} file, but {', '.join(others[:3])}"
    pickled = [file.name for file in find_weights(folder, [f"*{ending}" for ending in PICKLED])]
    if pickled:
        how = (
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
            if reads_safetensors(patterns)
            else f"to {wanted}, which the engine reads"
        )
        return (
            f"has only pickled weights ({', '.join(pickled[:3])}), which can run any code when they are read and are "
            f"refused; convert them where you trust them: {how}"
        )
    return f"has no weights: no {wanted} file (pickled weights are never fetched from a hub)"


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
