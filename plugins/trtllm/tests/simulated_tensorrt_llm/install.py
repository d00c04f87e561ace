"""Puts the simulation where the plugin imports TensorRT-LLM and torch; nothing else in the process sees it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from anyengine_trtllm import library, versions

from .classes import make_classes
from .llm import SimulatedLLM
from .torch import make_torch

__all__ = ["Installed", "install"]

GIB = 2**30


class Installed:
    """What was installed.

    Attributes:
        classes: name → simulated class.
        made: every ``LLM`` that was made, in order.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.classes = make_classes(facts)
        self.made: list[SimulatedLLM] = []
        self.torch = make_torch(free=70 * GIB, total=80 * GIB)

    def module(self, name: str) -> Any:
        """What ``import`` gives for a name."""
        if name == "torch":
            return self.torch
        if name in ("tensorrt_llm", "tensorrt_llm._tensorrt_engine"):
            return SimpleNamespace(LLM=partial(self._llm, tensorrt=name != "tensorrt_llm"))
        here = {
            short: self.classes[short]
            for short, entry in self.facts["classes"].items()
            if entry["module"] == name and short in self.classes
        }
        if not here:
            raise ImportError(f"there is no simulated module {name}")
        return SimpleNamespace(**here)

    def _llm(self, model: Any, *, tensorrt: bool, **kwargs: Any) -> SimulatedLLM:
        made = SimulatedLLM(self.classes, self.facts, model, tensorrt=tensorrt, **kwargs)
        self.made.append(made)
        return made


def install(monkeypatch: Any, facts: dict[str, Any]) -> Installed:
    """Simulate TensorRT-LLM until ``monkeypatch`` is undone."""
    installed = Installed(facts)
    library.load_library.cache_clear()
    monkeypatch.setattr(library, "import_module", installed.module)
    monkeypatch.setattr(versions, "installed", lambda: facts["version"])
    monkeypatch.setattr(versions, "find_spec", lambda name: object())
    return installed
