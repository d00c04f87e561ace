"""A simulated ``tensorrt_llm``: for tests only, never the engine, and no proof of it.

Its classes are made of the contract facts in ``tests/contract``: wrong names, types and values are refused as the
release refuses them, where that was read. What it computes is the reference engine's, in NumPy, under the rules that
were read of TensorRT-LLM's samplers. Nothing here is TensorRT-LLM's code.
"""

from .classes import make_classes
from .install import Installed, install
from .llm import SimulatedLLM
from .torch import Tensor

__all__ = ["Installed", "SimulatedLLM", "Tensor", "install", "make_classes"]
