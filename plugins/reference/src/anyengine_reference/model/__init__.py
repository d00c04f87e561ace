"""The mathematics of the model: config and weights in, hidden states and logits out, the same bits in every batch."""

from .cache import KVCache
from .config import ModelConfig, RopeConfig
from .errors import BadCheckpoint, UnsupportedModel
from .llama import Model, Segment
from .load import load_model

__all__ = [
    "BadCheckpoint",
    "KVCache",
    "Model",
    "ModelConfig",
    "RopeConfig",
    "Segment",
    "UnsupportedModel",
    "load_model",
]
