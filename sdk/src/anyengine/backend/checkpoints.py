"""What a plugin declares of quantised checkpoints: those that it makes, and those that it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from anyengine.hub import ModelFiles

__all__ = ["CheckpointSupport", "QuantizeJob", "QuantizeReport", "QuantizedFormat"]


class QuantizedFormat(Struct, frozen=True, kw_only=True):
    """Quantised checkpoints of one kind that an engine loads.

    Attributes:
        method: ``quant_method`` of the checkpoint: ``compressed-tensors``, ``awq``, ``gptq``, ``fp8``, ``modelopt``, …
        format: of compressed-tensors: ``pack-quantized``, ``int-quantized``, ``float-quantized``, …; of awq: ``gemm``;
            None for any.
        scheme: by the names of :mod:`anyengine.quantization.stored`: ``int8-w8a8``, ``int4-w4a16``, ``fp8-dynamic``, …
        group_sizes: inputs that may share a scale, 0 for a scale of a whole row; None for any.
        asymmetric: whether zero points may differ from zero.
        reordered: whether the inputs of a group may be others than neighbours (``desc_act``).
        kv_cache: element types that the checkpoint may ask for its cache.
        minimum_capability: of the GPU, major and minor; None where the kernel runs on any, or on CPUs.
        instructions: sets that an x86 processor must have, by their names in Linux's ``/proc/cpuinfo`` (``avx512f``);
            empty where the kernel runs on any, or on GPUs.
    """

    method: str
    format: str | None = None
    scheme: str
    group_sizes: tuple[int, ...] | None = None
    asymmetric: bool = False
    reordered: bool = False
    kv_cache: tuple[str, ...] = ()
    minimum_capability: tuple[int, int] | None = None
    instructions: tuple[str, ...] = ()


class CheckpointSupport(Struct, frozen=True, kw_only=True):
    """The checkpoints that an engine loads; what is not among them is refused before any weight is read.

    Attributes:
        architectures: ``model_type`` of a config.json; None: left to the engine.
        formats: quantised ones; those in float need no mention.
    """

    architectures: tuple[str, ...] | None = None
    formats: tuple[QuantizedFormat, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeJob:
    """A checkpoint to make.

    Attributes:
        model: the source checkpoint, looked over; it is not quantised.
        scheme: one of the engine's ``capabilities.quantize``.
        output: an empty folder, which the SDK moves to where the caller wants it when the job is done, and deletes
            when it is not.
        calibration: token ids, all sequences of one length; None for a scheme that is not among
            ``capabilities.calibrated``.
        seed: of whatever is random.
        progress: called with (done, total) steps, from any thread.
        cancelled: asked between steps; true ends the job as soon as it can.
    """

    model: ModelFiles
    scheme: str
    output: Path
    calibration: Sequence[Sequence[int]] | None = None
    seed: int = 0
    progress: Callable[[int, int], None]
    cancelled: Callable[[], bool]


class QuantizeReport(Struct, frozen=True, kw_only=True):
    """What a plugin says of a checkpoint that it has made.

    Attributes:
        recipe: how, in the toolchain's own words, enough to do it again: JSON-able.
        tools: name → version of what had a part in it, beside anyengine.
    """

    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    tools: dict[str, str] = field(default_factory=dict[str, str])
