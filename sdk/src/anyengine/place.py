"""Where an engine will run: in this process, or in a worker of some interpreter."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.backend import EnginePlugin
from anyengine.errors import AnyEngineError, EngineStartupError, InvalidConfig, PluginError, UnknownEngine
from anyengine.plugins import find_engine, wrong_description

if TYPE_CHECKING:
    from anyengine.backend import EngineDescription
    from anyengine.config import EngineConfig

__all__ = ["Here", "Worker", "choose_place", "describe"]

#: Configuration fields that are about a worker; in the application's process none of them can be set.
_OF_WORKERS = ("env", "environment", "health_timeout", "devices")


@dataclass(frozen=True, slots=True)
class Here:
    """This process.

    Attributes:
        plugin: of the engine.
        description: what it says about itself.
    """

    plugin: EnginePlugin
    description: EngineDescription


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of another, or of this, interpreter.

    Attributes:
        engine: its name.
        python: the interpreter.
        environment: name of the environment that it belongs to; None for this interpreter.
    """

    engine: str
    python: Path
    environment: str | None = None


def describe(engine: object) -> tuple[EnginePlugin, EngineDescription]:
    """The plugin of that name, or that object, and what it says about itself.

    Raises:
        UnknownEngine, InvalidConfig: there is no such engine.
        PluginError: it cannot describe itself, or gives what is no description.
    """
    plugin = find_engine(engine) if isinstance(engine, str) else engine
    if not isinstance(plugin, EnginePlugin):
        raise InvalidConfig(
            f"engine: {plugin!r} is neither an engine's name nor an EnginePlugin object", field="engine"
        )
    try:
        description = plugin.describe()
    except Exception as error:
        raise PluginError(f"describe of {plugin!r} raised {type(error).__name__}: {error}") from error
    wrong = wrong_description(description)  # of an object that was passed nobody has looked yet
    if wrong is not None:
        raise PluginError(f"describe of {plugin!r} {wrong}")
    return plugin, description


def choose_place(engine: object, config: EngineConfig) -> Here | Worker:
    """Follow the caller's wish; without one: this process where the plugin declares itself safe for it, or attaches
    to a server; else a worker of this interpreter if it has the engine, else of the only environment that has.

    Raises:
        UnknownEngine, InvalidConfig, PluginError: the wish cannot be met; says what to do.
        EngineStartupError: the engine cannot run in any of these places.
    """
    _require_asyncio()
    if isinstance(engine, str) and config.isolation != "none" and config.environment is not None:
        from anyengine.environments import find_environment  # noqa: PLC0415 few programs have environments

        return Worker(engine, Path(find_environment(config.environment).python), config.environment)
    try:
        plugin, description = describe(engine)
    except UnknownEngine as error:
        return _elsewhere(str(engine), config, error)
    name = description.name
    if config.isolation == "none" or (config.isolation == "auto" and not isinstance(engine, str)):
        return _here(plugin, description, config)
    if not isinstance(engine, str):
        raise InvalidConfig(
            "isolation: a plugin object runs in this process only; install it under a name, as an entry point of the "
            "group anyengine.engines, to run it in a worker",
            engine=name,
            field="isolation",
        )
    attached = description.attached(config)
    if description.unavailable is not None and not attached:
        from anyengine.environments.description import why_unavailable  # noqa: PLC0415 few programs have environments

        reason = f"{name} cannot run in this interpreter: {why_unavailable(description)}"
        return _elsewhere(name, config, EngineStartupError(reason, engine=name))
    if config.isolation == "auto" and (description.in_process or attached) and not _wants_worker(config):
        return _here(plugin, description, config)
    return Worker(name, Path(sys.executable))


def _elsewhere(name: str, config: EngineConfig, error: AnyEngineError) -> Worker:
    """The only environment that has the engine."""
    from anyengine.environments import choose_environment  # noqa: PLC0415 see above

    if config.isolation != "none":
        found = choose_environment(name)
        if found is not None:
            return Worker(name, Path(found.python), found.name)
    raise error


def _wants_worker(config: EngineConfig) -> bool:
    return bool(set(_OF_WORKERS) & set(config.changed()))


def _here(plugin: EnginePlugin, description: EngineDescription, config: EngineConfig) -> Here:
    changed = set(config.changed())
    for field in _OF_WORKERS:
        if field in changed:
            raise InvalidConfig(
                f"{field}: belongs to a worker process, and {description.name} is to run in this one; leave it out, or "
                "pass isolation='process'",
                engine=description.name,
                field=field,
            )
    if config.isolation == "auto" and not description.in_process and not description.attached(config):
        raise InvalidConfig(
            f"isolation: {description.name} does not declare itself safe for the application's process, and a plugin "
            "object runs nowhere else; install the plugin and load it by its name, to run it in a worker, or pass "
            "isolation='none' to run it here all the same",
            engine=description.name,
            field="isolation",
        )
    return Here(plugin, description)


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise InvalidConfig(
            "an engine needs an asyncio event loop; run under asyncio, or use anyengine.sync", field="isolation"
        ) from error
