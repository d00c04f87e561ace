"""The reference engine of anyengine: what ``docs/semantics.md`` says, executed, in NumPy and float32.

Importing this package is cheap; NumPy comes with the first load.
"""

from anyengine_reference.plugin import plugin

__all__ = ["plugin"]
