"""The release that is simulated."""

from .simulation.facts import FACTS

__all__ = ["__version__"]

__version__: str = FACTS["version"]
