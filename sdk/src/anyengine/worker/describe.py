"""``python -P -m anyengine.worker --describe``: what this interpreter has, as one JSON document on stdout."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version
from typing import Any

import msgspec

from anyengine.environments.description import DescribedEngine, EnvironmentDescription
from anyengine.plugins import ENGINES, InstalledEngine, find_engines
from anyengine.worker.protocol import PROTOCOL

__all__ = ["describe_engine", "describe_interpreter", "main"]


def describe_interpreter() -> dict[str, Any]:
    """What :class:`~anyengine.environments.EnvironmentDescription` says, as JSON-able data."""
    described = EnvironmentDescription(
        protocol=PROTOCOL,
        sdk_version=version("anyengine"),
        python_version=".".join(map(str, sys.version_info[:3])),
        platform=sys.platform,
        engines=tuple(map(describe_engine, find_engines().values())),
        folders=tuple(sys.path),
        files=_files(),
    )
    return msgspec.to_builtins(described)


def describe_engine(engine: InstalledEngine) -> DescribedEngine:
    """What another interpreter is told of an engine here."""
    about = engine.description
    if about is None:
        return DescribedEngine(name=engine.name, distribution=engine.distribution, broken=engine.broken)
    return DescribedEngine(
        name=engine.name,
        distribution=engine.distribution,
        plugin_version=about.plugin_version,
        engine_version=about.engine_version,
        unavailable=about.unavailable,
        in_process=about.in_process,
        # Sets in order: the same engine says the same each time. Not of the whole: the first variant is the default.
        capabilities=msgspec.to_builtins(about.capabilities, order="deterministic"),
        models=tuple(about.models),
        default_model=about.default_model,
        environments=about.environments,
        checkpoints=about.checkpoints,
        weights=about.weights,
    )


def _files() -> tuple[str, ...]:
    """The plugins' modules that were imported, and what says which protocol is spoken.

    Of plugins that are installed editable no package folder changes when their code does.
    """
    packages = {point.module.partition(".")[0] for point in entry_points(group=ENGINES)}
    # A copy: a module's attributes may import another.
    modules = [module for name, module in sys.modules.copy().items() if name.partition(".")[0] in packages]
    files = [getattr(module, "__file__", None) for module in (*modules, sys.modules["anyengine.worker.protocol"])]
    return tuple(sorted({file for file in files if file}))


def main() -> None:
    """Print it; whatever plugins print goes to stderr."""
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        encoded = msgspec.json.encode(describe_interpreter()) + b"\n"
    finally:
        sys.stdout.flush()
    with os.fdopen(answer, "wb") as file:
        file.write(encoded)
