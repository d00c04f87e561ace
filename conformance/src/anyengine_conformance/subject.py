"""The engine under test: how it is loaded, and which of its variants is loaded now."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from anyengine import Engine, EngineConfig, InvalidConfig
from anyengine.backend import EnginePlugin
from anyengine.backend.weights import SAFETENSORS
from anyengine.plugins import find_engines

from anyengine_conformance.check import DEFAULT, variants
from anyengine_conformance.violation import NotApplicable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
    from pathlib import Path

    from anyengine import Capabilities
    from anyengine.backend import EngineDescription

    from anyengine_conformance.settings import Settings

__all__ = ["Garage", "LoadFailed", "PluginTarget", "Target", "laid_over", "target_of"]


class Target(Protocol):
    """What loads engines."""

    async def describe(self) -> EngineDescription | None:
        """What the plugin says about itself; None where it is not installed in this interpreter."""
        ...

    async def load(self, config: Mapping[str, Any]) -> Engine:
        """Bring an engine up, by fields of :class:`anyengine.EngineConfig`."""
        ...

    async def quantize(self, model: str, scheme: str, output: Path, environment: str | None) -> Path:
        """Make a quantised checkpoint, where the engine runs: see :meth:`anyengine.Engine.quantize`."""
        ...


class PluginTarget:
    """An engine by its name, or by a plugin object."""

    def __init__(self, engine: str | EnginePlugin) -> None:
        self._engine = engine

    async def describe(self) -> EngineDescription | None:
        if isinstance(self._engine, EnginePlugin):
            return self._engine.describe()
        installed = find_engines().get(self._engine)
        return None if installed is None else installed.description

    async def load(self, config: Mapping[str, Any]) -> Engine:
        return await Engine.load(self._engine, config=EngineConfig(**config))

    async def quantize(self, model: str, scheme: str, output: Path, environment: str | None) -> Path:
        # The suite measures the drift itself, on the engine under test.
        return await Engine.quantize(
            self._engine, model=model, scheme=scheme, output=output, environment=environment, oracle=None
        )


class FactoryTarget:
    """``module:name`` of a third party: a plugin object, something that makes one, or something that makes an engine.

    A callable is called without arguments for a plugin object, or, where it has a parameter ``config``, with an
    EngineConfig for an awaitable of an :class:`anyengine.Engine`.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._made: Any = None

    async def _factory(self) -> PluginTarget | Callable[..., Awaitable[Engine]]:
        if self._made is None:
            self._made = await asyncio.to_thread(self._import)
        return self._made

    def _import(self) -> Any:
        module, _, name = self._place.partition(":")
        with self._told("cannot be imported"):
            found: Any = getattr(import_module(module), name)
        if callable(found) and not isinstance(found, EnginePlugin):
            if "config" in inspect.signature(found).parameters:
                return found
            with self._told("cannot be called without arguments for a plugin"):
                found = found()
        if inspect.iscoroutine(found):
            found.close()
        if not isinstance(found, EnginePlugin):
            raise self._wrong(
                f"gave a {type(found).__name__}; needed is an EnginePlugin, or a callable with a parameter `config` "
                "that gives an engine"
            )
        return PluginTarget(found)

    @contextmanager
    def _told(self, what: str) -> Generator[None]:
        """Whatever it raises is told as the factory's."""
        try:
            yield
        except Exception as error:
            raise self._wrong(f"{what}: {type(error).__name__}: {error}") from error

    def _wrong(self, what: str) -> InvalidConfig:
        return InvalidConfig(f"subject.factory: {self._place} {what}", field="factory")

    async def describe(self) -> EngineDescription | None:
        made = await self._factory()
        return await made.describe() if isinstance(made, PluginTarget) else None

    async def load(self, config: Mapping[str, Any]) -> Engine:
        made = await self._factory()
        if isinstance(made, PluginTarget):
            if config.get("isolation") == "process":
                raise InvalidConfig(
                    f"isolation: {self._place}, the subject's `factory`, gives a plugin object, which a worker cannot "
                    "have; install the plugin and name it instead, as `engine`",
                    field="isolation",
                )
            return await made.load(config)
        engine: Any = made(config=EngineConfig(**config))
        engine = await engine if inspect.isawaitable(engine) else engine
        if not isinstance(engine, Engine):
            raise self._wrong(
                f"gave a {type(engine).__name__} for a configuration; needed is an awaitable of an Engine"
            )
        return engine

    async def quantize(self, model: str, scheme: str, output: Path, environment: str | None) -> Path:
        made = await self._factory()
        if not isinstance(made, PluginTarget):
            raise NotApplicable("the subject's factory makes engines, and no plugin that could quantise")
        return await made.quantize(model, scheme, output, environment)


def target_of(settings: Settings) -> Target:
    """What loads the engine that the settings name."""
    if settings.factory is not None:
        return FactoryTarget(settings.factory)
    return PluginTarget(settings.engine)


def laid_over(base: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the later ones winning."""
    result = dict(base)
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if isinstance(value, dict) and isinstance(old, dict):
                result[key] = laid_over(cast("dict[str, Any]", old), cast("dict[str, Any]", value))
            else:
                result[key] = value
    return result


class LoadFailed(Exception):
    """A variant does not load; it is not tried again for every check."""

    def __init__(self, variant: str, error: BaseException) -> None:
        super().__init__(f"the variant {variant!r} did not load: {type(error).__name__}: {error}")
        self.error = error


class Garage:
    """Holds one loaded engine at a time: on a GPU there is no room for two.

    Attributes:
        notes: what checks want to keep as long as the loaded engine lives.
        shared: what they want to keep for the whole run.
        settings: of the subject.
        target: what loads it.
        described: what the plugin declares in general, if it could be asked.
        weights: patterns of the files that the engine reads weights from.
        loads: engines loaded so far.
        model_path: folder of the subject's checkpoint, once a variant was loaded.
    """

    def __init__(self, target: Target, settings: Settings) -> None:
        self.target = target
        self.settings = settings
        self.notes: dict[str, Any] = {}
        self.shared: dict[str, Any] = {}
        self.described: Capabilities | None = None
        self.weights: tuple[str, ...] = SAFETENSORS
        self.loads = 0
        self.model_path: str | None = None
        self._variant: str | None = None
        self._engine: Engine | None = None
        self._failed: dict[str, BaseException] = {}

    def config(self, variant: str, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The fields of EngineConfig for a variant: the subject's, the variant's, the subject's for the variant."""
        settings = self.settings
        return laid_over(settings.config, variants()[variant].config, settings.variants.get(variant, {}), extra or {})

    def lacks(self, variant: str) -> str:
        """Why a variant says nothing about the subject's model; empty if it does."""
        goes_with, settings = variants()[variant].only_for, self.settings
        built_in = "storyteller" if settings.engine == "reference" else None
        model = settings.config.get("model", built_in)
        if not goes_with or variant in settings.variants or model == goes_with:
            return ""
        return (
            f"the variant {variant!r} is made for the model {goes_with}; for {model or 'another one'}, say in "
            f"conformance.toml, [variants.{variant}], what goes with it"
        )

    def holds(self, variant: str) -> bool:
        """Whether that variant is loaded."""
        return self._engine is not None and self._variant == variant

    async def engine(self, variant: str) -> Engine:
        """The engine of a variant, loaded if it is not yet.

        Raises:
            LoadFailed: it does not load, now or before.
        """
        if self._engine is not None and self._variant == variant:
            return self._engine
        await self.release()
        if variant in self._failed:
            raise LoadFailed(variant, self._failed[variant])
        try:
            self._engine = await self.target.load(self.config(variant))
        except Exception as error:
            self._failed[variant] = error
            raise LoadFailed(variant, error) from error
        self.loads += 1
        self.model_path = str(self._engine.model.path)
        self._variant = variant
        return self._engine

    async def health(self) -> None:
        """Return if what is loaded works, or nothing is.

        Raises:
            EngineDied, EngineUnresponsive: it does not.
        """
        if self._engine is not None:
            await self._engine.health()

    async def checkpoint(self) -> str:
        """The folder of the subject's checkpoint; the default variant is loaded if nothing was yet.

        Raises:
            LoadFailed: it does not load.
        """
        if self.model_path is None:
            await self.engine(DEFAULT)
        return str(self.model_path)

    def failed(self, variant: str, error: BaseException) -> None:
        """Remember that a variant cannot be loaded (it hung)."""
        self._failed[variant] = error

    @asynccontextmanager
    async def own(self, config: Mapping[str, Any]) -> AsyncGenerator[Engine]:
        """An engine beside the variants; the shared one makes room first."""
        await self.release()
        engine = await self.target.load(config)
        self.loads += 1
        try:
            yield engine
        finally:
            await engine.close()

    async def release(self) -> None:
        """Close what is loaded."""
        engine = self.forget()
        if engine is not None:
            await engine.close()

    def forget(self) -> Engine | None:
        """Let go of what is loaded without a word to it."""
        engine, self._engine, self._variant = self._engine, None, None
        self.notes = {}
        return engine
