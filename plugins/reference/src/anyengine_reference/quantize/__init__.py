"""Quantization of checkpoints, in NumPy: an ordinary Hugging Face checkpoint in, one with integer weights out."""

from .quantize import CALIBRATED, SCHEMES, QuantizationCancelled, QuantizedCheckpoint, quantize_checkpoint

__all__ = ["CALIBRATED", "SCHEMES", "QuantizationCancelled", "QuantizedCheckpoint", "quantize_checkpoint"]
