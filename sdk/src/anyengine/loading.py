"""From a name and a configuration to a running engine."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from anyengine._concurrency import Deferred
from anyengine.backend import Backend
from anyengine.errors import AnyEngineError, EngineStartupError, InvalidConfig, PluginError
from anyengine.hookspecs import hookimpl
from anyengine.plugins import EngineManager, extension_manager, find_engine
from anyengine.runtime.checks import check_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
    from types import TracebackType

    from anyengine.backend import EngineDescription, EnginePlugin
    from anyengine.config import EngineConfig
    from anyengine.engine import Engine
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Chunk, Completion

__all__ = ["EngineLoading"]


class EngineLoading:
    """An engine on its way: await it, or enter it with ``async with``. Nothing happens before."""

    def __init__(
        self,
        cls: type[Engine],
        engine: str | EnginePlugin,
        config: Callable[[], EngineConfig],
        extensions: Sequence[str | object],
    ) -> None:
        self._cls = cls
        self._engine = engine
        self._config = config
        self._extensions = extensions
        self._loaded: Engine | None = None

    def __await__(self) -> Generator[Any, Any, Engine]:
        return self._load().__await__()

    async def __aenter__(self) -> Engine:
        self._loaded = await self._load()
        return self._loaded

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loaded is not None:
            await self._loaded.close()

    async def _load(self) -> Engine:
        config = self._config()
        plugin = find_engine(self._engine) if isinstance(self._engine, str) else self._engine
        description = plugin.describe()
        _check_place(description, config)
        check_config(description.name, description.capabilities, config)
        hooks: Any = extension_manager(_Innermost(), self._extensions).hook
        engine: Engine | None = None

        async def inner() -> None:
            nonlocal engine
            engine = await _bring_up(self._cls, plugin, description, config, hooks)

        await hooks.load(engine=description.name, config=config, inner=Deferred(inner))
        if engine is None:
            raise PluginError("an extension's load hook never awaited the loading itself", engine=description.name)
        return engine


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
    manager = EngineManager(plugin)
    backend: Backend | None = None
    try:
        with anyio.fail_after(config.startup_timeout):
            backend = await manager.hook.load(config=config, model=model)
        if not isinstance(backend, Backend):
            raise PluginError(f"load of {name} returned a {type(backend).__name__}, not a Backend", engine=name)
        manager.register(backend, "backend")
        runtime = LocalRuntime(name, config, model, tokenizer, manager, backend)
    except AnyEngineError as error:
        error.engine = error.engine or name
        raise
    except TimeoutError as error:
        message = f"{name} was not ready after {config.startup_timeout} s (startup_timeout)"
        raise EngineStartupError(message, engine=name) from error
    except Exception as error:
        message = f"{name} raised {type(error).__name__} while loading, which its plugin does not map: {error}"
        raise PluginError(message, engine=name) from error
    return cls(name, config, model, runtime, hooks)
