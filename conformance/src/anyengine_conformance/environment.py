"""Where a run took place."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine import AnyEngineError, UnknownEngine
from anyengine.environments import find_environment
from anyengine.place import Here, choose_place, describe
from anyengine.plugins import ENGINES

from anyengine_conformance.results import Environment

if TYPE_CHECKING:
    from anyengine import EngineConfig
    from anyengine.backend import EngineDescription
    from anyengine.environments import DescribedEngine

__all__ = ["described_there", "engine_version", "gather", "require_known"]

#: What decides about numbers, beside the engine's own packages.
_PACKAGES = ("anyengine", "anyengine-conformance", "anyengine-reference", "hypothesis", "numpy", "tokenizers", "torch")


def gather(engine: str) -> Environment:
    """Look around; what cannot be learnt is left out.

    Args:
        engine: name whose plugin's distribution is listed too.
    """
    own = [point.dist.name for point in entry_points(group=ENGINES) if point.name == engine and point.dist is not None]
    found: dict[str, str] = {}
    for name in (*_PACKAGES, *own, engine):
        try:
            found[name] = version(name)
        except (PackageNotFoundError, ValueError):
            continue
    return Environment(
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpus=os.cpu_count(),
        accelerators=_accelerators(),
        packages=dict(sorted(found.items())),
        commit=_commit(),
    )


def _accelerators() -> list[str]:
    said = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return [line.strip() for line in said.splitlines() if line.strip()]


def _commit() -> str | None:
    """Of the checkout that this very file belongs to; not of whatever repository an environment lies in."""
    git = ("git", "-C", str(Path(__file__).parent))
    if not _said(*git, "ls-files", Path(__file__).name):
        return None
    return _said(*git, "describe", "--always", "--dirty").strip() or None


def _said(program: str, *words: str) -> str:
    """What a program says; nothing where it is missing or fails."""
    found = shutil.which(program)
    if found is None:
        return ""
    try:
        return subprocess.run([found, *words], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603 fixed
    except (OSError, subprocess.SubprocessError):
        return ""


def engine_version(engine: str, config: EngineConfig) -> str | None:
    """Version of the engine library where the engine runs with that configuration; None if that is not known.

    Needs a running event loop, as loading does.

    Raises:
        AnyEngineError: there is no place for it to run.
    """
    described = described_there(engine, config)
    return None if described is None else described.engine_version


def described_there(engine: str, config: EngineConfig) -> EngineDescription | DescribedEngine | None:
    """What the plugin says about itself where the engine runs with that configuration; None if that is not known.

    Needs a running event loop, as loading does.

    Raises:
        AnyEngineError: there is no place for it to run.
    """
    place = choose_place(engine, config)
    if isinstance(place, Here):
        return place.description
    if place.environment is None:
        return describe(engine)[1]
    described = find_environment(place.environment).described
    return None if described is None else described.find(engine)


def require_known(engine: str, config: EngineConfig) -> None:
    """See that a plugin has that name, here or in an environment; nothing is imported or loaded for it.

    Whether an environment that the configuration names has the engine, only the first load can tell.

    Raises:
        InvalidConfig: it names an environment that is not there.
        UnknownEngine: no plugin has the name; says which are installed.
    """
    if config.environment is not None:
        find_environment(config.environment)
    if any(point.name == engine for point in entry_points(group=ENGINES)):
        return

    async def choose() -> None:
        choose_place(engine, config)

    try:
        asyncio.run(choose())
    except UnknownEngine:
        raise
    except AnyEngineError:
        pass  # it is known, or its environment is named, and it has no place to run: the first load says so, and why
