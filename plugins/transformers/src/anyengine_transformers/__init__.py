"""Hugging Face transformers as an engine: any causal language model, one plain forward at a time.

Importing this package is cheap; torch and transformers come with the first load.
"""

from anyengine_transformers.plugin import plugin

__all__ = ["plugin"]
