"""Copies of a checkpoint without its weights, or with what a broken download leaves of them, in any format."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from anyengine.backend.weights import SAFETENSORS
from anyengine.hub.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["copy_cut_short", "copy_without_weights", "weight_files"]

#: Bytes of a file that a copy cut short has at most; a model may be larger than the place for temporary files.
_MOST = 1_000_000


def weight_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The weights of a checkpoint: those that the engine reads, and safetensors that lie beside them for an oracle."""
    return find_weights(folder, (*patterns, *SAFETENSORS))


def copy_without_weights(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Copy all of a checkpoint but its weights, and the index of safetensors.

    Args:
        source: folder of the checkpoint.
        folder: to make.
        patterns: of the files that the engine reads weights from.
    """
    left = set(weight_files(source, (*patterns, "*.safetensors.index.json")))
    # A name is judged by where it is: `onnx/*.onnx` says nothing of the same name beside that folder.
    shutil.copytree(source, folder, ignore=lambda place, names: {n for n in names if source.joinpath(place, n) in left})


def copy_cut_short(source: Path, folder: Path, patterns: Sequence[str]) -> bool:
    """Copy a checkpoint with half of each weights file that the engine reads, or less.

    Args:
        source: folder of the checkpoint.
        folder: to make.
        patterns: of the files that the engine reads weights from.

    Returns:
        Whether there are any; if not, nothing was made.
    """
    files = find_weights(source, patterns)
    if not files:
        return False
    copy_without_weights(source, folder, patterns)
    for file in files:
        with file.open("rb") as content:
            begin = content.read(min(_MOST, file.stat().st_size // 2))
        (folder / file.relative_to(source)).write_bytes(begin)
    return True
