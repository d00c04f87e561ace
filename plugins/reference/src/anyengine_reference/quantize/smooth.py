"""Moving what is hard to round from activations into weights, before both are rounded to 8 bits.

SmoothQuant, https://arxiv.org/abs/2211.10438: a few channels of the activations are much larger than the rest, and with
one scale a token they cost the others their precision. Channel j of what goes into a product is divided by

    s_j = max |X_j|^a / max |W_j|^(1 - a)

(equation 4) and column j of the matrix multiplied by it, so the product stays what it was. The division is done by what
comes before: the weight of a norm, or, of the MLP's last matrix, the rows of the one whose outputs these are. What goes
into attention's last matrix is left: heads share the rows that it comes from. Here every factor is a power of two, so
that the float model is the same afterwards to the bit, in any dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anyengine_reference.model.cache import KVCache
from anyengine_reference.model.checkpoint import Checkpoint
from anyengine_reference.model.config import ModelConfig
from anyengine_reference.model.llama import Model, Product, Segment
from anyengine_reference.model.ops import FloatArray

__all__ = ["STRENGTH", "Factor", "smoothing_factors"]

STRENGTH = 0.5
"""The exponent a; the paper's choice for most models."""
_BLOCK = 16
_LEAST = np.float32(1e-5)
"""Channels that are never larger stay as they are, as do columns of nothing but zeros."""


@dataclass(slots=True)
class Factor:
    """What a tensor is multiplied by: its rows, or the entries of a vector, and its columns. None: nothing."""

    rows: FloatArray | None = None
    columns: FloatArray | None = None

    def __call__(self, tensor: FloatArray) -> FloatArray:
        """Return the product."""
        if self.rows is not None:
            tensor = tensor * (self.rows[:, None] if tensor.ndim > 1 else self.rows)
        return tensor if self.columns is None else tensor * self.columns


class _Watched:
    """A product that remembers how large each of its inputs has been."""

    def __init__(self, linear: Product, inputs: int) -> None:
        self._linear = linear
        self.largest = np.zeros(inputs, np.float32)

    def __call__(self, rows: FloatArray) -> list[FloatArray]:
        np.maximum(self.largest, np.abs(rows[:, : len(self.largest)]).max(0), out=self.largest)
        return self._linear(rows)


def smoothing_factors(
    config: ModelConfig, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], step: Callable[[], None]
) -> dict[str, Factor]:
    """Return what the tensors of a checkpoint are to be multiplied by, from the activations that it has on some text.

    Args:
        config: of the checkpoint.
        checkpoint: in float.
        sequences: token ids.
        step: called after each sequence; may raise to end the work.
    """
    model = Model(config, checkpoint)
    watched: list[tuple[_Watched, _Watched, _Watched]] = []
    for layer in model.layers:
        layer.qkv = qkv = _Watched(layer.qkv, config.hidden_size)
        layer.gate_up = gate_up = _Watched(layer.gate_up, config.hidden_size)
        layer.down = down = _Watched(layer.down, config.intermediate_size)
        watched.append((qkv, gate_up, down))
    for sequence in sequences:
        blocks = -(-len(sequence) // _BLOCK)
        model.forward([Segment(sequence, 0, range(blocks))], KVCache(config, blocks, _BLOCK))
        step()
    factors: dict[str, Factor] = {}
    for index, (qkv, gate_up, down) in enumerate(watched):
        prefix = f"model.layers.{index}."
        for norm, seen, matrices in (
            ("input_layernorm", qkv, [f"self_attn.{x}_proj" for x in "qkv"]),
            ("post_attention_layernorm", gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            names = [f"{prefix}{matrix}.weight" for matrix in matrices]
            scale = _scale(checkpoint, seen.largest, names)
            factors[f"{prefix}{norm}.weight"] = Factor(rows=np.reciprocal(scale))
            factors.update({name: Factor(columns=scale) for name in names})
        scale = _scale(checkpoint, down.largest, [f"{prefix}mlp.down_proj.weight"])
        factors[f"{prefix}mlp.up_proj.weight"].rows = np.reciprocal(scale)
        factors[f"{prefix}mlp.up_proj.bias"] = Factor(rows=np.reciprocal(scale))
        factors[f"{prefix}mlp.down_proj.weight"] = Factor(columns=scale)
    return factors


def _scale(checkpoint: Checkpoint, largest: FloatArray, names: Sequence[str]) -> FloatArray:
    """S of equation 4, the nearest power of two."""
    columns = np.maximum.reduce([np.abs(checkpoint[name].float32()).max(0) for name in names])
    exact = largest**STRENGTH / np.maximum(columns, _LEAST) ** (1 - STRENGTH)
    exact[(largest < _LEAST) | (columns < _LEAST)] = 1
    return np.exp2(np.rint(np.log2(exact))).astype(np.float32)
