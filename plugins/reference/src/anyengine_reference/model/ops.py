"""Products and norms whose rows do not depend on one another, to the bit.

BLAS adds the terms of a product in an order that depends on the shapes, so the same row gets other bits among 2 rows
than among 200. Here every product is a loop, in NumPy's C code, over matrix-vector products of one fixed shape: a
panel of 16 outputs and at most 560 inputs against the one row. What a row gives then depends on the row and the
weights alone. Two more things would break that, and are kept away: threads of BLAS, which split a product by how many
are free (a panel is smaller than what OpenBLAS splits), and addresses (rows begin at multiples of 64 bytes, so vectors
are never split otherwise).

Why one row and 16 outputs. Measured with SmolLM2-135M, NumPy 2.4, OpenBLAS 0.3.31, on one core of an AMD EPYC 9004:

- Tiles of 4 rows reach 54 to 90 GFLOP/s from cache with OpenBLAS's AVX-512 kernels, these panels 27 to 35. But with its
  AVX2 kernels, which most machines have, they reach 30 to 50, and a lone row, the usual case, pays for all 4. From main
  memory, where decoding gets its weights, a panel's product runs at the speed of the memory: 20 to 25 GB/s.
- Panels of 32 x 280 instead of 16 x 560: 190 against 160 tokens/s of prompt, but 39 against 29 ms a decoded token.
- Rows of weights [16, inputs] as in the checkpoint instead of [inputs, 16]: the same from cache, half from memory.
- Threads of our own make a prompt 1.4 to 1.6 times as fast on 2 cores. A decoded token gains nothing: but for the
  output projection, its products are too small for waking a thread; OpenBLAS's threads lost up to 100-fold on a busy
  machine.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from .workers import run

__all__ = [
    "LANE",
    "ROUND",
    "FloatArray",
    "IntArray",
    "Linear",
    "aligned",
    "fp8_rows",
    "int8_rows",
    "padded",
    "rms_norm",
    "round_up",
    "silu_product",
]

FloatArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
IntArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

LANE = 16
"""Floats in 64 bytes, a cache line: rows are padded with zeros to a multiple, so no loop has a tail of its own."""
_MAX_INPUTS = 560
"""OpenBLAS gives a product to more threads from 9216 multiplications on (``interface/gemv.c``): 16 x 560 = 8960."""
_PANELS = 512 * 1024
"""Bytes of weights in one call: it bounds the memory for sums of chunks and keeps them in the second-level cache."""
_ROWS = 128
"""Rows that go through the weights together; bounds the memory of a long prompt."""
_SPLIT = 1 << 23
"""Multiplications from which a product is shared among threads: below it, waking them costs more."""


def round_up(size: int, multiple: int = LANE) -> int:
    """Return the least multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def aligned(*shape: int) -> FloatArray:
    """Return an uninitialised float32 array that begins at a multiple of 64 bytes."""
    size = math.prod(shape) * 4
    buffer = np.empty(size + 64, np.uint8)
    offset = -buffer.ctypes.data % 64
    return buffer[offset : offset + size].view(np.float32).reshape(shape)


def padded(features: int) -> int:
    """Return how wide a row of so many features is kept: whole chunks of whole lanes; what is over is zero."""
    chunks = -(-features // _MAX_INPUTS)
    return chunks * round_up(-(-features // chunks))


class Linear:
    """``y = W x + b`` for rows x and one or more W, each [outputs, inputs] as checkpoints have them.

    The weights are kept as [chunks, panels, chunk inputs, 16 outputs], so that a panel is one run of memory, zeros
    where a size is not a multiple. The sums of the chunks are added in order.
    """

    def __init__(self, *weights: FloatArray, biases: Sequence[FloatArray] = (), rounded: str | None = None) -> None:
        """Copy the weights; `rounded` is the element type that rows are rounded to before a product, one of `ROUND`."""
        self._round = None if rounded is None else ROUND[rounded]
        inputs = weights[0].shape[1]
        width = padded(inputs)
        self._chunks = -(-inputs // _MAX_INPUTS)
        self._chunk = width // self._chunks
        self._sizes = [padded(len(weight)) for weight in weights]
        self._weight = aligned(self._chunks, sum(self._sizes) // LANE, self._chunk, LANE)
        self._bias = np.zeros(sum(self._sizes), np.float32) if biases else None
        start = 0
        for position, weight in enumerate(weights):
            for row in range(0, self._sizes[position], LANE):
                block = np.zeros((LANE, width), np.float32)
                part = weight[row : row + LANE]
                block[: len(part), :inputs] = part
                panels = block.reshape(LANE, self._chunks, self._chunk).transpose(1, 2, 0)
                self._weight[:, (start + row) // LANE] = panels
            if self._bias is not None:
                self._bias[start : start + len(weight)] = biases[position]
            start += self._sizes[position]

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take."""
        return self._weight.nbytes

    def weight_rows(self, indices: IntArray) -> FloatArray:
        """Return rows of W, [len(indices), padded inputs]: the lookup where embedding and output projection are one."""
        rows = aligned(len(indices), self._chunks * self._chunk)
        rows.reshape(len(indices), self._chunks, self._chunk)[...] = self._weight[:, indices // LANE, :, indices % LANE]
        return rows

    def __call__(self, rows: FloatArray) -> list[FloatArray]:
        """Return ``W x + b`` for each W, [rows, padded outputs]; `rows` is [rows, padded inputs], made by `aligned`."""
        if self._round is not None:
            rows = self._round(rows)
        out = aligned(len(rows), sum(self._sizes))
        for start in range(0, len(rows), _ROWS):
            self._product(rows[start : start + _ROWS], out[start : start + _ROWS])
        if self._bias is not None:
            out += self._bias
        if len(self._sizes) == 1:
            return [out]
        ends = list(itertools.accumulate(self._sizes))
        return [out[:, end - size : end] for end, size in zip(ends, self._sizes, strict=True)]

    def _product(self, rows: FloatArray, out: FloatArray) -> None:
        count, panels = len(rows), self._weight.shape[1]
        vectors = rows.reshape(1, count, self._chunks, self._chunk).transpose(0, 2, 1, 3)
        result = out.reshape(count, panels, LANE).transpose(1, 0, 2)
        together = panels if count == 1 else max(1, _PANELS // self._weight[:, 0].nbytes)

        def work(first: int, last: int) -> None:
            for start in range(first, last, together):
                stop = min(start + together, last)
                target = result[start:stop]
                np.vecmat(vectors[:, 0], self._weight[0, start:stop, None], out=target)
                if self._chunks > 1:
                    part = aligned(stop - start, count, LANE)
                    for chunk in range(1, self._chunks):
                        np.vecmat(vectors[:, chunk], self._weight[chunk, start:stop, None], out=part)
                        target += part

        run(work, panels, split=count * self._weight.size >= _SPLIT)


def int8_rows(rows: FloatArray) -> FloatArray:
    """Return ``round(x / s) * s`` with ``s = max |x| / 127`` of each row: what a product with 8-bit activations sees.

    One scale a token, made while running: https://arxiv.org/abs/2206.01861, section 4.2. As vLLM's kernels do it;
    compressed-tensors' own emulation divides by 127.5.
    """
    out = aligned(*rows.shape)
    scale = np.abs(rows).max(-1, keepdims=True) / np.float32(127)
    np.maximum(scale, np.float32(2.0**-126), out=scale)
    np.divide(rows, scale, out=out)
    np.rint(out, out=out)
    out *= scale
    return out


def fp8_rows(rows: FloatArray) -> FloatArray:
    """Return the multiples of ``s = max |x| / 448`` of each row that e4m3 has and that are nearest to its entries.

    https://arxiv.org/abs/2209.05433, table 1: 3 bits of mantissa, exponents from -6, 448 the largest; ties to even.
    """
    out = aligned(*rows.shape)
    scale = np.abs(rows).max(-1, keepdims=True) / np.float32(448)
    np.maximum(scale, np.float32(2.0**-126), out=scale)
    np.divide(rows, scale, out=out)
    _, exponents = np.frexp(out)  # of a mantissa from 0.5 up
    step = np.ldexp(np.float32(1), np.maximum(exponents - 1, -6) - 3)
    np.divide(out, step, out=out)
    np.rint(out, out=out)
    out *= step
    out *= scale
    return out


ROUND: dict[str, Callable[[FloatArray], FloatArray]] = {"fp8": fp8_rows, "int8": int8_rows}
"""Element type → what rounds rows to it, with one scale a row."""


def rms_norm(rows: FloatArray, weight: FloatArray, size: int, epsilon: float) -> FloatArray:
    """Return ``x / sqrt(mean(x²) + epsilon) * weight`` over the last axis: RMSNorm, https://arxiv.org/abs/1910.07467.

    Equation 4 there. The mean is of the first `size` entries of a row; the rest are padding, zero before and after.
    """
    out = aligned(*rows.shape)
    scale = np.vecdot(rows, rows)[..., None]
    scale /= np.float32(size)
    scale += np.float32(epsilon)
    np.sqrt(scale, out=scale)
    np.divide(rows, scale, out=out)
    out *= weight
    return out


def silu_product(gate: FloatArray, up: FloatArray, out: FloatArray) -> None:
    """Write ``gate * sigmoid(gate) * up``: SwiGLU, https://arxiv.org/abs/2002.05202, equation 6.

    The exponential of a very negative gate is infinite and the quotient then the exact limit, zero.
    """
    np.negative(gate, out=out)
    np.exp(out, out=out)
    out += np.float32(1)
    np.divide(gate, out, out=out)
    out *= up
