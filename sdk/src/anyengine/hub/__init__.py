"""Where checkpoints come from: local folders and the Hugging Face hub."""

from anyengine.hub.files import ModelFiles
from anyengine.hub.resolve import resolve_model

__all__ = ["ModelFiles", "resolve_model"]
