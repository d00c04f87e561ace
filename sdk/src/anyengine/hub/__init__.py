"""Where checkpoints come from: local folders and the Hugging Face hub."""

from anyengine.hub.files import ModelFiles

__all__ = ["ModelFiles"]
