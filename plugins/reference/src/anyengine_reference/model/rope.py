"""Rotary position embedding, with the scalings of its frequencies that are a function of the position alone."""

import math

import numpy as np

from .config import RopeConfig
from .ops import FloatArray, IntArray, round_up

__all__ = ["RotaryTable", "inverse_frequencies", "rotate"]

_CHUNK = 1024


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Return the angle a position for each pair of features, float64 [head_dim / 2], and the factor of cos and sin.

    - default: ``theta ** (-2 i / head_dim)``, RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.
    - linear: all divided by ``factor``, position interpolation, https://arxiv.org/abs/2306.15595, equation 4.
    - llama3: wavelengths longer than ``original / low_freq_factor`` divided by ``factor``, shorter than
      ``original / high_freq_factor`` kept, linear in between; ``apply_scaling`` of Llama 3.1,
      https://github.com/meta-llama/llama-models, ``models/llama3/model.py``.
    - yarn: "NTK-by-parts", https://arxiv.org/abs/2309.00071, equations 17 to 23; the ramp is over the feature's index,
      cut to whole indices unless ``truncate`` is false; the factor is ``0.1 ln(factor) + 1`` unless the checkpoint
      states another.
    """
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.type == "default":
        return frequencies, 1.0
    if rope.type == "linear":
        return frequencies / rope.factor, 1.0
    if rope.type == "llama3":
        turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        attention_factor = 1.0
    else:
        low, high = (
            head_dim
            * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi))
            / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        kept = 1 - np.clip((np.arange(head_dim // 2) - low) / width, 0, 1)
        attention_factor = _yarn_attention_factor(rope)
    kept = np.clip(kept, 0, 1)
    return frequencies * kept + frequencies / rope.factor * (1 - kept), attention_factor


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """Equation 22 of the paper, and its quotient form of DeepSeek-V2 (``mscale``, ``mscale_all_dim``)."""

    def scale(by: float) -> float:
        return 0.1 * by * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


class RotaryTable:
    """Cosines and sines of every position, computed in float64, rounded once to float32, as far as positions were
    asked.
    """

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        self._frequencies, self._factor = inverse_frequencies(rope, head_dim)
        self._cos: FloatArray = np.empty((0, head_dim // 2), np.float32)
        self._sin: FloatArray = np.empty((0, head_dim // 2), np.float32)

    def lookup(self, positions: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return cos and sin, float32 [rows, 1, head_dim / 2], of int64 [rows] positions."""
        known, last = len(self._cos), int(positions.max())
        if last >= known:
            new = np.arange(known, round_up(last + 1, _CHUNK), dtype=np.float64)
            angles = new[:, None] * self._frequencies
            self._cos = np.concatenate([self._cos, (np.cos(angles) * self._factor).astype(np.float32)])
            self._sin = np.concatenate([self._sin, (np.sin(angles) * self._factor).astype(np.float32)])
        return self._cos[positions, None], self._sin[positions, None]


def rotate(heads: FloatArray, cos: FloatArray, sin: FloatArray) -> None:
    """Turn each pair of features (i, i + head_dim / 2) of [rows, heads, head_dim] in place.

    RoFormer, equation 34, with the pairs laid out as halves as in every Hugging Face checkpoint of these families.
    """
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    turned = first * cos - second * sin
    second *= cos
    second += first * sin
    first[...] = turned
