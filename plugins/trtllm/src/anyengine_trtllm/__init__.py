"""TensorRT-LLM as an engine of anyengine: tokens in, tokens out, every field honoured or refused.

Importing this package is cheap; TensorRT-LLM, MPI and torch come with the first load. The mapping was written against
TensorRT-LLM's published interface and has been run against a simulation of it only: see ``docs/engines/trtllm.md``.
"""

from anyengine_trtllm.plugin import plugin

__all__ = ["plugin"]
