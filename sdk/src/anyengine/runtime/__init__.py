"""Where requests meet an engine: admission, text in, tokens, text out."""

from anyengine.runtime.base import Prepared, Runtime

__all__ = ["Prepared", "Runtime"]
