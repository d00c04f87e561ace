"""Weights as integers (or 8-bit floats) with scales: rounding, and the words that several integers share in a file.

``weight ≈ q * scale``, symmetric round to nearest: https://arxiv.org/abs/2106.08295, section 2.2. A scale is that of a
row (an output), or of a group of inputs within a row.
"""

from typing import Any

import numpy as np

from .ops import FloatArray

__all__ = ["E4M3", "dequantize", "pack", "quantize", "rounded_scale", "scale_float32", "unpack"]

_STEPS = {4: np.float32(7.5), 8: np.float32(127)}
"""Bits → the scaled magnitude that is stored without a loss of range. With 4 bits 7.5 becomes 7, off by half a step as
any other; with 8 bits the one value -128 is not worth the asymmetry."""
_RANGES = {4: (-8, 7), 8: (-127, 127)}
_WORD_BITS = 32


def _e4m3() -> FloatArray:
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, (byte & 7).astype(np.float32)
    size = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    size[(byte & 127) == 127] = np.nan  # noqa: PLR2004 - all bits of exponent and mantissa
    return np.where(byte > 127, -size, size).astype(np.float32)  # noqa: PLR2004 - the sign


E4M3 = _e4m3()
"""The values of 8-bit floats with 4 bits of exponent, by their bytes: https://arxiv.org/abs/2209.05433, table 1."""


def rounded_scale(weight: FloatArray, dtype: str, *, bits: int = 8, group_size: int | None = None) -> Any:
    """Return the scales, [outputs, groups]: the least values of `dtype` (F32, F16, BF16) that cover the weights.

    Rounded up, so that no quotient leaves the range; never zero. BF16 comes as its 16 bits.

    Args:
        weight: [outputs, inputs].
        dtype: of the scales.
        bits: 4 or 8.
        group_size: inputs that share a scale; None for all of a row. It divides the inputs.

    Raises:
        ValueError: a weight is not finite.
    """
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, -1, group_size or inputs)
    exact = np.abs(groups).max(2) / _STEPS[bits]
    if not np.isfinite(exact).all():
        raise ValueError("a weight is not finite")
    exact = np.maximum(exact, np.float32(2.0**-126))
    if dtype == "F32":
        return exact
    if dtype == "BF16":
        return ((exact.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
    near: np.ndarray[Any, Any] = exact.astype(np.float16)
    return np.where(near.astype(np.float32) < exact, np.nextafter(near, np.float16(np.inf)), near)


def scale_float32(scale: np.ndarray[Any, Any]) -> FloatArray:
    """Return scales as float32."""
    if scale.dtype == np.uint16:
        return (scale.astype(np.uint32) << 16).view(np.float32)
    return scale.astype(np.float32)


def quantize(weight: FloatArray, scale: FloatArray, *, bits: int = 8) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return ``round(weight / scale)``, ties to even, within the range of so many bits: int8 of float32
    [outputs, inputs] and [outputs, groups].
    """
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, scale.shape[1], -1)
    values = np.clip(np.rint(groups / scale[:, :, None]), *_RANGES[bits])
    return values.astype(np.int8).reshape(outputs, inputs)


def dequantize(
    values: np.ndarray[Any, np.dtype[np.int8]], scale: FloatArray, columns: np.ndarray[Any, Any] | None = None
) -> FloatArray:
    """Return ``q * scale``: float32 [outputs, inputs] of int8 [outputs, inputs] and [outputs, groups].

    Args:
        values: the integers, less their zero points if they have any.
        scale: of each group.
        columns: the group that each input belongs to, [inputs]; None for consecutive groups of one size.
    """
    outputs, inputs = values.shape
    if columns is not None:
        return values * scale[:, columns]
    groups = values.reshape(outputs, scale.shape[1], -1) * scale[:, :, None]
    return groups.reshape(outputs, inputs)


def pack(values: np.ndarray[Any, np.dtype[np.int8]], *, bits: int = 8) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return int32 [rows, ceil(columns * bits / 32)] of int8 [rows, columns].

    Each value plus half its range, the first in the lowest bits of a word; zeros fill the last one.
    """
    rows, columns = values.shape
    each = _WORD_BITS // bits
    offset = np.zeros((rows, -(-columns // each) * each), np.uint32)
    offset[:, :columns] = values.astype(np.int16) + (1 << (bits - 1))
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    words = np.bitwise_or.reduce(offset.reshape(rows, -1, each) << shifts, axis=2)
    return words.astype("<u4").view("<i4")


def unpack(packed: np.ndarray[Any, Any], columns: int, *, bits: int = 8) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return int8 [rows, columns]: the reverse of `pack`."""
    words = np.ascontiguousarray(packed, "<i4").view("<u4")
    shifts = np.arange(_WORD_BITS // bits, dtype=np.uint32) * np.uint32(bits)
    stored = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    values = stored.reshape(len(words), -1)[:, :columns].astype(np.int16) - (1 << (bits - 1))
    return values.astype(np.int8)
