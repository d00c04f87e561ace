"""Which LMDeploy is here; reads package metadata only."""

from __future__ import annotations

from importlib.util import find_spec

from anyengine.backend.releases import installed_version, unmapped

__all__ = ["MAPPED", "installed", "unavailable"]

#: The release whose interface is mapped. What LMDeploy alters or drops in silence differs between releases.
MAPPED = (0, 18)


def installed() -> str | None:
    """Version of the LMDeploy in this interpreter, None without one."""
    return installed_version("lmdeploy")


def unavailable() -> str | None:
    """Why LMDeploy cannot run in this interpreter, None if it can; imports nothing of it."""
    found = installed()
    if found is None or find_spec("lmdeploy") is None:
        return "LMDeploy is not installed here"
    return unmapped("LMDeploy", found, MAPPED)
