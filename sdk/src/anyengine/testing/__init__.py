"""For tests: a simulated engine that says what it is told to, and a model folder for it.

Nothing here computes anything, and nothing here ever stands in for an engine outside of tests.
"""

from anyengine.testing.model_folder import EOS, make_model_folder
from anyengine.testing.scripted import ScriptedBackend, ScriptedPlugin, all_capabilities

__all__ = ["EOS", "ScriptedBackend", "ScriptedPlugin", "all_capabilities", "make_model_folder"]
