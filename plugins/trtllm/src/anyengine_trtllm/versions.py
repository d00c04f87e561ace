"""Which TensorRT-LLM is here; reads package metadata only."""

from __future__ import annotations

from importlib.util import find_spec

from anyengine.backend.releases import installed_version, unmapped

__all__ = ["MAPPED", "installed", "unavailable"]

#: The release whose interface is mapped. Samplers, log-probabilities and speculation change between releases, and a
#: parameter that another release ignores in silence would break the promise of this package.
MAPPED = (1, 2)


def installed() -> str | None:
    """Version of the TensorRT-LLM in this interpreter, None without one."""
    return installed_version("tensorrt-llm")


def unavailable() -> str | None:
    """Why TensorRT-LLM cannot run in this interpreter, None if it can; imports nothing of it."""
    found = installed()
    if found is None or find_spec("tensorrt_llm") is None:
        return "TensorRT-LLM is not installed here; docs/engines/trtllm.md says how, on a machine that can run it"
    return unmapped("TensorRT-LLM", found, MAPPED)
