"""Which LMDeploy is here; reads package metadata only."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

__all__ = ["MAPPED", "installed", "parse", "unavailable"]

#: The release whose interface is mapped. What LMDeploy alters or drops in silence differs between releases.
MAPPED = (0, 18)


def installed() -> str | None:
    """Version of the LMDeploy in this interpreter, None without one."""
    try:
        return version("lmdeploy")
    except PackageNotFoundError:
        return None


def parse(text: str) -> tuple[int, ...]:
    """The release part of a version: ``0.18.0+cu130`` is (0, 18, 0)."""
    matched = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in matched.group().split(".")) if matched else ()


def unavailable() -> str | None:
    """Why LMDeploy cannot run in this interpreter, None if it can; imports nothing of it."""
    found = installed()
    if found is None or find_spec("lmdeploy") is None:
        return "LMDeploy is not installed here"
    if parse(found)[:2] != MAPPED:
        wanted = ".".join(map(str, MAPPED))
        return f"LMDeploy {found} is not mapped, this plugin is written for {wanted}; install that release"
    return None
