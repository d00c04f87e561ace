"""From a share of a device's total memory to a share of what is free once the model is loaded.

For engines that give their cache a fraction of the memory that the weights leave (TensorRT-LLM, LMDeploy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine.errors import OutOfMemory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["free_fraction", "weight_bytes"]


def weight_bytes(folder: Path, *, devices: int) -> int:
    """Bytes of a checkpoint's weights on each device, by the size of its files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // devices


def free_fraction(share: float, *, total: int, free: int, weights: int) -> float:
    """The share of what is left for the cache with which weights and cache together take a share of the device.

    The cache gets a fraction of what is free after the weights are there, so of ``free - weights``; of the
    ``share * total`` that was asked for, ``share * total - weights`` is left for it. Activations are not counted: they
    come out of what the engine leaves free.

    Args:
        share: of the device's total memory, in (0, 1].
        total: bytes of the device.
        free: bytes of it that are free now.
        weights: bytes that the model will take.

    Raises:
        OutOfMemory: the share does not hold the weights, or is not free.
    """
    field = "kv_cache.gpu_memory_fraction"
    wanted, left = share * total - weights, free - weights
    if wanted <= 0:
        raise OutOfMemory(
            f"{field}: {share} of {total / 2**30:.1f} GiB does not hold the weights, {weights / 2**30:.1f} GiB; give "
            "more, or spread the model over more devices (parallel)",
            field=field,
        )
    if left < wanted:
        raise OutOfMemory(
            f"{field}: {share} of {total / 2**30:.1f} GiB is not free, only {free / 2**30:.1f} GiB are; give less, or "
            "end what else uses the device",
            field=field,
        )
    return wanted / left
