"""What an interpreter says it has: printed there by ``python -m anyengine.worker --describe``, read here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from anyengine.backend.base import EnvironmentVariant
from anyengine.backend.checkpoints import CheckpointSupport
from anyengine.backend.weights import SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.backend.base import EngineDescription

__all__ = ["DescribedEngine", "EnvironmentDescription", "how_to_make", "why_unavailable"]


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
        weights: patterns of the files that it reads weights from.
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
    weights: tuple[str, ...] = SAFETENSORS

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


def how_to_make(engine: str, variants: Mapping[str, EnvironmentVariant], *, quantize: bool = False) -> str | None:
    """Which commands make an environment for an engine on this platform; None where its plugin lists no packages.

    Args:
        engine: its name.
        variants: what its plugin lists.
        quantize: the toolchains that cannot share an environment with the engine, instead of the engine.
    """
    fitting = [
        f"--variant {name}"
        for name, variant in variants.items()
        if variant.quantize is quantize and variant.platform in {None, sys.platform}
    ]
    if not fitting:
        return None
    others = " or ".join(f"`{option}`" for option in fitting[1:])
    command = f"`anyengine env create {engine} {fitting[0]}`" + (f" (or {others})" if others else "")
    return f"{command} makes an environment for it"


def why_unavailable(about: DescribedEngine | EngineDescription) -> str | None:
    """Why an engine cannot run where it was described, and what makes a place for it; None if it can."""
    how = how_to_make(about.name, about.environments)
    return f"{about.unavailable}; {how}" if about.unavailable and how else about.unavailable
