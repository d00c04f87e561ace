"""Finding engines and extensions, and the plugin managers that call them.

Each entry point is loaded on its own and guarded: one that fails is listed as broken, with its reason, and harms no
other.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy
from msgspec import Struct

from anyengine._typed import ill_typed
from anyengine.backend.base import Backend, EngineDescription, EnginePlugin
from anyengine.backend.weights import weights_not_declarable
from anyengine.errors import InvalidConfig, PluginError, UnknownEngine
from anyengine.hookspecs import PROJECT, EngineHooks, ExtensionHooks
from anyengine.suggestions import suggested

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ENGINES",
    "EXTENSIONS",
    "EngineManager",
    "InstalledEngine",
    "find_engine",
    "find_engines",
    "wrong_description",
]

#: Entry-point groups.
ENGINES = "anyengine.engines"
EXTENSIONS = "anyengine.extensions"

_ENGINE_HOOKS = frozenset(name for name, _ in inspect.getmembers(EngineHooks, inspect.isfunction))


class EngineManager(pluggy.PluginManager):
    """Calls the hooks of one engine: its plugin object and, once loaded, its backend."""

    def __init__(self, plugin: EnginePlugin) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(EngineHooks)
        self.register(plugin, "plugin")

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        """Methods of our base classes are implementations by their names, so that plugins need no markers.

        Only those: a backend may well have a ``load`` of its own.
        """
        base = next((base for base in (EnginePlugin, Backend) if isinstance(plugin, base)), None)
        if name in _ENGINE_HOOKS and base is not None and hasattr(base, name):
            return {
                "wrapper": False,
                "hookwrapper": False,
                "optionalhook": False,
                "tryfirst": False,
                "trylast": False,
                "specname": None,
            }
        return None


def extension_manager(base: object, extensions: Iterable[str | object]) -> pluggy.PluginManager:
    """A manager whose innermost implementation is ``base``, wrapped by ``extensions``, the first outermost."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ExtensionHooks)
    manager.register(base, "engine")
    # pluggy calls the wrapper that was registered last first.
    for extension in reversed(list(extensions)):
        plugin = _load_extension(extension) if isinstance(extension, str) else extension
        if not any(manager.parse_hookimpl_opts(plugin, name) for name in dir(plugin)):
            raise InvalidConfig(
                f"extensions: {plugin!r} implements no hook; see anyengine.hookspecs", field="extensions"
            )
        manager.register(plugin)
    manager.check_pending()
    return manager


def _load_extension(name: str) -> object:
    found = {point.name: point for point in entry_points(group=EXTENSIONS)}
    if name not in found:
        there_are = suggested(name, found, f"installed are: {', '.join(sorted(found)) or 'none'}")
        raise InvalidConfig(f"extensions: no extension is named {name!r}; {there_are}", field="extensions")
    try:
        return found[name].load()
    except Exception as error:
        raise PluginError(f"extension {name!r} ({found[name].value}) cannot be imported: {error}") from error


class InstalledEngine(Struct, frozen=True):
    """What discovery found behind one entry point.

    Attributes:
        name: of the entry point, which is the engine's name.
        distribution: name and version of the package that brought it.
        plugin: the plugin; None if it is broken.
        description: what it says about itself; None if it is broken.
        broken: why it cannot be used at all; None if it can.
    """

    name: str
    distribution: str
    plugin: EnginePlugin | None = None
    description: EngineDescription | None = None
    broken: str | None = None


def find_engines() -> dict[str, InstalledEngine]:
    """Every installed engine plugin by name, broken ones included, sorted by name."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENGINES):
        points.setdefault(point.name, []).append(point)
    return {name: _inspect(name, points[name]) for name in sorted(points)}


def find_engine(name: str) -> EnginePlugin:
    """The plugin of that name.

    Raises:
        UnknownEngine: there is none; says what is installed and how to get more.
        PluginError: there is one, and it is broken.
    """
    points = [point for point in entry_points(group=ENGINES) if point.name == name]
    if not points:
        available = sorted({point.name for point in entry_points(group=ENGINES)})
        there_are = f"installed are: {', '.join(available) or 'none'}"
        told = suggested(name, available, there_are)
        if told == there_are:  # misspelt, it is no other package's
            told += f". It comes with a package, most often anyengine-{name}: install that here or in an environment"
        raise UnknownEngine(f"no engine is named {name!r}; {told}", engine=name, available=available)
    engine = _inspect(name, points)
    if engine.plugin is None:
        raise PluginError(
            f"the plugin of engine {name!r} ({engine.distribution}) is broken: {engine.broken}", engine=name
        )
    return engine.plugin


def wrong_description(description: object) -> str | None:
    """What is wrong with what ``describe`` gave, told as what it did; None if nothing is."""
    if not isinstance(description, EngineDescription):
        return f"returned a {type(description).__name__}, not an EngineDescription"
    # Told to another interpreter, what is of a wrong type would cost all engines there.
    wrong = ill_typed(description) or weights_not_declarable(description.weights)
    return None if wrong is None else f"gave {wrong}"


def _inspect(name: str, points: list[EntryPoint]) -> InstalledEngine:
    origin = ", ".join(sorted(f"{p.dist.name} {p.dist.version}" if p.dist else p.value for p in points))
    if len(points) > 1:
        return InstalledEngine(name, origin, broken=f"several packages bring an engine of this name: {origin}")
    try:
        plugin = points[0].load()
        if not isinstance(plugin, EnginePlugin):
            found = type(plugin).__name__
            return InstalledEngine(name, origin, broken=f"{points[0].value} is a {found}, not an EnginePlugin instance")
        description = plugin.describe()
    except Exception as error:  # noqa: BLE001 whatever a foreign module raises must not harm the others
        return InstalledEngine(name, origin, broken=f"{points[0].value}: {type(error).__name__}: {error}")
    wrong = wrong_description(description)
    if wrong is not None:
        return InstalledEngine(name, origin, broken=f"describe {wrong}")
    if description.name != name:
        reason = f"it is registered as {name!r} but describes itself as {description.name!r}"
        return InstalledEngine(name, origin, broken=reason)
    return InstalledEngine(name, origin, plugin, description)
