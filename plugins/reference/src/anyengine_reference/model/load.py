"""A checkpoint folder in, a model out."""

from pathlib import Path

from .checkpoint import Checkpoint, read_json
from .compressed import QuantizedWeights, Stored, read_config
from .config import ModelConfig
from .errors import UnsupportedModel
from .llama import Model

__all__ = ["load_model"]


def load_model(folder: Path, *, quantization: str | None = None) -> Model:
    """Load a Hugging Face checkpoint: ``config.json`` and safetensors in F32, F16, BF16 or integers.

    Args:
        folder: the checkpoint.
        quantization: "int8" rounds the projections' weights to 8-bit integers, one scale an output: the same bits as a
            load of what `quantize_checkpoint` writes with the scheme ``int8-w8a16``. None takes the weights as they
            are stored.

    Raises:
        UnsupportedModel: an architecture, rope type, activation or quantization that is not computed here.
        BadCheckpoint: no checkpoint, or one that is damaged or incomplete.
    """
    if quantization not in {None, "int8"}:
        raise UnsupportedModel(
            f"quantization is {quantization!r}; the reference engine knows 'int8', and None for none."
        )
    config = read_json(folder / "config.json")
    model_config = ModelConfig.from_dict(config)
    stored = read_config(config)
    if quantization is not None and stored is not None and stored != Stored(8):
        raise UnsupportedModel(
            f"quantization is {quantization!r}, and the checkpoint is {stored.scheme} already; leave it out."
        )
    checkpoint = Checkpoint(folder)
    if stored is None and quantization is None:
        return Model(model_config, checkpoint)
    weights = QuantizedWeights(checkpoint, stored)
    return Model(model_config, weights, rounded=weights.rounded)
