"""A simulated ``lmdeploy``: for tests only, never the engine, and no proof of it.

On ``sys.path`` this folder's parent stands where LMDeploy would. Classes are made of the contract facts in
``tests/contract``: wrong names, types and values are refused as the release refuses them, or where it would go on and
compute something else. What it computes is the reference engine's, in NumPy, under the rules that were read in the
source of 0.18.0. TurboMind's own source is C++ that is not in the wheel: what was not read says so. Nothing here is
LMDeploy's code.
"""

from .version import __version__

__all__ = ["__version__"]
