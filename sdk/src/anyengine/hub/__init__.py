"""Where checkpoints come from: local folders and the Hugging Face hub."""

from anyengine.hub.files import ModelFiles
from anyengine.hub.resolve import locate_config, read_config, resolve_model

__all__ = ["ModelFiles", "locate_config", "read_config", "resolve_model"]
