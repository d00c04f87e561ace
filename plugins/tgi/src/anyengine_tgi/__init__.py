"""Text Generation Inference as an engine of anyengine."""

from anyengine_tgi.plugin import NAME, TgiPlugin, plugin

__all__ = ["NAME", "TgiPlugin", "plugin"]
