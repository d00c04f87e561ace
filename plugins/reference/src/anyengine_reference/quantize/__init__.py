"""Quantization of checkpoints, in NumPy: an ordinary Hugging Face checkpoint in, one with integer weights out."""

from .quantize import SCHEMES, QuantizationCancelled, QuantizedCheckpoint, quantize_checkpoint

__all__ = ["SCHEMES", "QuantizationCancelled", "QuantizedCheckpoint", "quantize_checkpoint"]
