"""What an interpreter says it has: printed there by ``python -m anyengine.worker --describe``, read here."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from anyengine.backend.base import EnvironmentVariant
from anyengine.backend.checkpoints import CheckpointSupport

__all__ = ["DescribedEngine", "EnvironmentDescription"]


class DescribedEngine(Struct, frozen=True, kw_only=True):
    """An engine of another interpreter.

    Attributes:
        name: of the engine.
        distribution: name and version of the package that brought the plugin.
        plugin_version: of the plugin; None where it is broken.
        engine_version: of the engine library; None if it is not installed there.
        broken: why the plugin cannot be used; None if it can.
        unavailable: why the engine cannot run there; None if it can.
        in_process: whether it declares itself safe for the application's process.
        capabilities: the fields of :class:`anyengine.Capabilities` as the SDK there has them.
        models: names of the models that come with the plugin.
        default_model: the one of them that is loaded if none is named.
        environments: variant → the packages that an environment is made of.
        checkpoints: those that it loads; None where its plugin does not say.
    """

    name: str
    distribution: str = ""
    plugin_version: str | None = None
    engine_version: str | None = None
    broken: str | None = None
    unavailable: str | None = None
    in_process: bool = False
    capabilities: dict[str, Any] = field(default_factory=dict[str, Any])
    models: tuple[str, ...] = ()
    default_model: str | None = None
    environments: dict[str, EnvironmentVariant] = field(default_factory=dict[str, EnvironmentVariant])
    checkpoints: CheckpointSupport | None = None

    @property
    def reason(self) -> str | None:
        """Why the engine cannot run there; None if it can."""
        return self.broken or self.unavailable


class EnvironmentDescription(Struct, frozen=True, kw_only=True):
    """What an interpreter has. A reader ignores fields that it does not know.

    Attributes:
        protocol: major and minor version of what its worker speaks.
        sdk_version: of anyengine there.
        python_version: of the interpreter.
        platform: ``sys.platform`` there.
        engines: its engines, those that are broken or cannot run there among them.
        folders: where it looks for packages.
        files: of the plugins' code. These and the folders are what the description depends on.
    """

    protocol: tuple[int, int]
    sdk_version: str = ""
    python_version: str = ""
    platform: str = ""
    engines: tuple[DescribedEngine, ...] = ()
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def find(self, engine: str) -> DescribedEngine | None:
        """The engine of that name, if it is there."""
        return next((found for found in self.engines if found.name == engine), None)
