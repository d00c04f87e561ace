"""Which release of an engine is in this interpreter; reads the metadata of packages only."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version", "release", "unmapped"]


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these packages that is installed; None without one."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version: ``1.2.1rc0+cu130`` is (1, 2, 1)."""
    matched = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in matched.group().split(".")) if matched else ()


def unmapped(engine: str, found: str, mapped: tuple[int, ...]) -> str | None:
    """Why a plugin that maps one release does not run another; None if it is that one.

    Args:
        engine: as it is called in messages.
        found: the version that is installed.
        mapped: the first numbers of the release that is mapped.
    """
    if release(found)[: len(mapped)] == mapped:
        return None
    wanted = ".".join(map(str, mapped))
    return f"{engine} {found} is not mapped, this plugin is written for {wanted}; install that release"
