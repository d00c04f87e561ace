"""From a name and a configuration to a running engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
from pluggy import PluginValidationError

from anyengine._concurrency import Deferred
from anyengine.backend import Backend, BackendInfo, EnginePlugin
from anyengine.errors import AnyEngineError, EngineStartupError, InvalidConfig, Misuse, PluginError
from anyengine.hookspecs import hookimpl
from anyengine.plugins import EngineManager, extension_manager, find_engine
from anyengine.runtime.checks import check_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from types import TracebackType

    from anyengine.backend import EngineDescription
    from anyengine.config import EngineConfig
    from anyengine.engine import Engine
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Chunk, Completion

__all__ = ["EngineLoading", "describe"]


class EngineLoading:
    """An engine on its way: await it, or enter it with ``async with``. Nothing happens before."""

    def __init__(
        self,
        cls: type[Engine],
        engine: str | EnginePlugin,
        config: Callable[[], EngineConfig],
        extensions: Iterable[str | object],
    ) -> None:
        self._cls = cls
        self._engine = engine
        self._config = config
        self._extensions = extensions
        self._loaded: Engine | None = None

    def __await__(self) -> Generator[Any, Any, Engine]:
        return self._load().__await__()

    async def __aenter__(self) -> Engine:
        if self._loaded is not None:
            raise Misuse("this loading was entered already; call Engine.load again for another engine")
        self._loaded = await self._load()
        return self._loaded

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loaded is not None:
            await self._loaded.close()

    async def _load(self) -> Engine:
        config = self._config()
        plugin, description = describe(self._engine)
        _check_place(description, config)
        check_config(description.name, description.capabilities, config)
        hooks = _extension_hooks(self._extensions)
        engine: Engine | None = None

        async def inner() -> None:
            nonlocal engine
            if engine is not None:
                raise PluginError("an extension's load hook awaited the loading twice", engine=description.name)
            engine = await _bring_up(self._cls, plugin, description, config, hooks)

        try:
            loading = hooks.load(engine=description.name, config=config, inner=Deferred(inner))
            if not hasattr(loading, "__await__"):
                kind = type(loading).__name__
                raise PluginError(f"an extension's load hook returned a {kind}, not an awaitable")
            await loading
        except BaseException:  # after the loading itself: an extension's own, or a cancellation
            if engine is not None:
                await engine.close()
            raise
        if engine is None:
            raise PluginError("an extension's load hook never awaited the loading itself", engine=description.name)
        return engine


def describe(engine: object) -> tuple[EnginePlugin, EngineDescription]:
    """The plugin of that name, or that object, and what it says about itself.

    Raises:
        UnknownEngine, InvalidConfig: there is no such engine.
        PluginError: it cannot describe itself.
    """
    plugin = find_engine(engine) if isinstance(engine, str) else engine
    if not isinstance(plugin, EnginePlugin):
        raise InvalidConfig(
            f"engine: {plugin!r} is neither an engine's name nor an EnginePlugin object", field="engine"
        )
    try:
        return plugin, plugin.describe()
    except Exception as error:
        raise PluginError(f"describe of {plugin!r} raised {type(error).__name__}: {error}") from error


def _extension_hooks(extensions: Iterable[str | object]) -> Any:
    if isinstance(extensions, str) or not isinstance(cast("object", extensions), Iterable):
        raise InvalidConfig(f"extensions: give a list of names or objects, not {extensions!r}", field="extensions")
    try:
        return extension_manager(_Innermost(), extensions).hook
    except (PluginValidationError, ValueError) as error:  # a hook with the wrong arguments; the same object twice
        raise InvalidConfig(f"extensions: {error}", field="extensions") from error


class _Innermost:
    """What lies inside all extensions: the operation itself."""

    @hookimpl
    def load(self, inner: Awaitable[None]) -> Awaitable[None]:
        return inner

    @hookimpl
    def generate(self, inner: Awaitable[Completion]) -> Awaitable[Completion]:
        return inner

    @hookimpl
    def stream(self, inner: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        return inner


def _check_place(description: EngineDescription, config: EngineConfig) -> None:
    """Where the engine will run: only in this process, so far."""
    if config.isolation == "process" or config.environment is not None:
        field = "isolation" if config.isolation == "process" else "environment"
        raise InvalidConfig(
            f"{field}: this version runs engines in the application's process only; leave it out",
            engine=description.name,
            field=field,
        )
    if config.isolation == "auto" and not description.in_process:
        raise InvalidConfig(
            f"isolation: {description.name} does not declare itself safe for the application's process; "
            "pass isolation='none' to run it there all the same",
            engine=description.name,
            field="isolation",
        )
    if description.unavailable is not None:
        raise EngineStartupError(
            f"{description.name} cannot run here: {description.unavailable}", engine=description.name
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise InvalidConfig(
            "an engine in this process needs an asyncio event loop; run under asyncio, or use anyengine.sync",
            engine=description.name,
            field="isolation",
        ) from error


async def _bring_up(
    cls: type[Engine], plugin: EnginePlugin, description: EngineDescription, config: EngineConfig, hooks: Any
) -> Engine:
    from anyengine.hub import resolve_model  # noqa: PLC0415 only who loads a model pays for these imports
    from anyengine.runtime.local import LocalRuntime  # noqa: PLC0415
    from anyengine.text.tokenizer import TextTokenizer  # noqa: PLC0415

    name = description.name
    wanted = config.model or description.default_model
    if wanted is None:
        raise InvalidConfig(f"model: {name} has no model of its own; name one", engine=name, field="model")
    model: ModelFiles = await anyio.to_thread.run_sync(
        partial(
            resolve_model,
            wanted,
            revision=config.revision,
            tokenizer=config.tokenizer,
            tokenizer_revision=config.tokenizer_revision,
            draft=config.speculative.model if config.speculative else None,
            builtin=description.models,
            loras=config.lora.adapters if config.lora else {},
        )
    )
    tokenizer = await anyio.to_thread.run_sync(TextTokenizer.load, model.tokenizer_path)
    backend: Backend | None = None
    try:
        manager = EngineManager(plugin)
        with anyio.move_on_after(config.startup_timeout) as limit:
            loaded = await manager.hook.load(config=config, model=model)
            if not isinstance(loaded, Backend):
                raise PluginError(f"load of {name} returned a {type(loaded).__name__}, not a Backend", engine=name)
            backend = loaded
        if backend is None or limit.cancelled_caught:
            message = f"{name} was not ready after {config.startup_timeout} s (startup_timeout)"
            raise EngineStartupError(message, engine=name)
        manager.register(backend, "backend")
        if not isinstance(cast("object", backend.info), BackendInfo):
            raise PluginError(f"info of {name} is a {type(backend.info).__name__}, not a BackendInfo", engine=name)
        return cls(name, config, model, LocalRuntime(name, config, model, tokenizer, manager, backend), hooks)
    except BaseException as error:
        if backend is not None:
            await _close_half_loaded(backend, error)
        if isinstance(error, AnyEngineError):
            error.engine = error.engine or name
        if isinstance(error, AnyEngineError) or not isinstance(error, Exception):
            raise
        message = f"{name} raised {type(error).__name__} while loading, which its plugin does not map: {error}"
        raise PluginError(message, engine=name) from error


async def _close_half_loaded(backend: Backend, error: BaseException) -> None:
    """Release what a load took that came to nothing; ``error`` says why it did, and stays the one that is raised."""
    with anyio.CancelScope(shield=True):
        try:
            await backend.close()
        except Exception as second:  # noqa: BLE001 noted
            error.add_note(f"and then close raised {type(second).__name__}: {second}")
