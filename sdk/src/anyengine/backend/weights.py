"""Which files hold the weights that an engine reads: the patterns of ``EngineDescription.weights``.

They are what a checkpoint is looked over for, and what is fetched from a hub; so they must not let a pickle in, which
can run any code when it is read, nor code itself. A plugin is code too, and trusted: this guards against a pattern that
takes more than its author thought of, so names are enough for it.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PICKLED", "SAFETENSORS", "reads_safetensors", "weights_not_declarable"]

#: What an engine reads whose plugin does not say.
SAFETENSORS = ("*.safetensors",)
#: Endings of files that run code when they are read, or may.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh")
#: ``.bin`` is an ending of pickles (PyTorch's) and of formats that are none (OpenVINO's, CTranslate2's, GGML's): there
#: a pattern has to begin with its format's own name, and to leave these alone.
_PICKLED_BIN = (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "diffusion_pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.bin",
    "scheduler.bin",
)


def reads_safetensors(patterns: Sequence[str]) -> bool:
    """Whether safetensors are among what an engine reads.

    Args:
        patterns: of file names, as ``EngineDescription.weights`` has them.
    """
    return any(pattern.endswith(".safetensors") for pattern in patterns)


def weights_not_declarable(patterns: Sequence[str]) -> str | None:
    """Which of the patterns a plugin may not declare, and why; None if it may declare them all.

    Args:
        patterns: of file names, as ``EngineDescription.weights`` has them.
    """
    if not patterns:
        return "() as weights: name at least one pattern, such as '*.safetensors'"
    reasons = ((pattern, _why_not(pattern)) for pattern in patterns)
    return next((f"{pattern!r} as weights: {reason}" for pattern, reason in reasons if reason is not None), None)


def _why_not(pattern: str) -> str | None:
    parts = pattern.split("/")
    if any(part in {"", ".", ".."} or "**" in part or "\\" in part or not part.isprintable() for part in parts):
        return "must be of files in the checkpoint's folder, or in a folder of that (onnx/*.onnx)"
    name = parts[-1].lower()
    stem, _, ending = name.rpartition(".")
    if not stem or re.fullmatch(r"\w+", ending) is None:
        return "must end in the format's file name extension, spelled out, so that nothing else is fetched"
    if f".{ending}" in _CODE:
        return "names code, which is never fetched from a hub"
    if ending == "bin" and name[0] not in "*?[" and not any(fnmatchcase(known, name) for known in _PICKLED_BIN):
        return None
    if ending == "bin":
        return (
            "names pickled weights as well (pytorch_model.bin), which are never fetched from a hub; for a format of "
            "that extension that is no pickle begin with the format's own name, as in 'openvino_*.bin'"
        )
    return "names pickled weights, which are never fetched from a hub" if f".{ending}" in PICKLED else None
