"""Which TensorRT-LLM is here; reads package metadata only."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["MAPPED", "installed", "parse", "unavailable"]

#: The release whose interface is mapped. Samplers, log-probabilities and speculation change between releases, and a
#: parameter that another release ignores in silence would break the promise of this package.
MAPPED = (1, 2)


def installed() -> str | None:
    """Version of the TensorRT-LLM in this interpreter, None without one."""
    try:
        return version("tensorrt-llm")
    except PackageNotFoundError:
        return None


def parse(text: str) -> tuple[int, ...]:
    """The release part of a version: ``1.2.1rc0+cu130`` is (1, 2, 1)."""
    matched = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in matched.group().split(".")) if matched else ()


def unavailable() -> str | None:
    """Why TensorRT-LLM cannot run in this interpreter, None if it can; imports nothing of it."""
    found = installed()
    if found is None or find_spec("tensorrt_llm") is None:
        return "TensorRT-LLM is not installed here; docs/engines/trtllm.md says how, on a machine that can run it"
    if parse(found)[:2] != MAPPED:
        wanted = ".".join(map(str, MAPPED))
        return f"TensorRT-LLM {found} is not mapped, this plugin is written for {wanted}; install that release"
    return None
