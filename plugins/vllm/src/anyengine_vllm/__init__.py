"""vLLM as an engine of anyengine: tokens in, tokens out, every field honoured or refused.

Importing this package is cheap; vLLM and torch come with the first load.
"""

from anyengine_vllm.plugin import plugin

__all__ = ["plugin"]
