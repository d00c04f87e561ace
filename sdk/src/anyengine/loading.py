"""From a name and a configuration to a running engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from pluggy import PluginValidationError

from anyengine._concurrency import Deferred
from anyengine.errors import InvalidConfig, Misuse, PluginError
from anyengine.hookspecs import hookimpl
from anyengine.place import Here, choose_place
from anyengine.plugins import extension_manager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from types import TracebackType

    from anyengine.backend import EnginePlugin
    from anyengine.config import EngineConfig
    from anyengine.engine import Engine
    from anyengine.outputs import Chunk, Completion
    from anyengine.place import Worker

__all__ = ["EngineLoading"]


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

    if not TYPE_CHECKING:  # to a type checker it would have every attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or not hasattr(self._cls, name):
                message = f"{type(self).__name__!r} object has no attribute {name!r}"
            else:
                message = (
                    f"an engine has {name!r} once it is loaded: `engine = await Engine.load(…)`, or `async with "
                    "Engine.load(…) as engine:` (anyengine.sync has an Engine without await)"
                )
            raise AttributeError(message, name=name, obj=self)

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
        place = choose_place(self._engine, config)
        name = place.description.name if isinstance(place, Here) else place.engine
        hooks = _extension_hooks(self._extensions)
        engine: Engine | None = None

        async def inner() -> None:
            nonlocal engine
            if engine is not None:
                raise PluginError("an extension's load hook awaited the loading twice", engine=name)
            engine = await _bring_up(self._cls, place, config, hooks)

        try:
            loading = hooks.load(engine=name, config=config, inner=Deferred(inner))
            if not hasattr(loading, "__await__"):
                kind = type(loading).__name__
                raise PluginError(f"an extension's load hook returned a {kind}, not an awaitable")
            await loading
        except BaseException:  # after the loading itself: an extension's own, or a cancellation
            if engine is not None:
                await engine.close()
            raise
        if engine is None:
            raise PluginError("an extension's load hook never awaited the loading itself", engine=name)
        return engine


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


async def _bring_up(cls: type[Engine], place: Here | Worker, config: EngineConfig, hooks: Any) -> Engine:
    if isinstance(place, Here):
        from anyengine.runtime.bringup import bring_up  # noqa: PLC0415 only who loads a model pays for these imports

        return cls(place.description.name, config, *await bring_up(place.plugin, place.description, config), hooks)
    from anyengine.worker.client import start_worker  # noqa: PLC0415

    return cls(place.engine, config, *await start_worker(place, config), hooks)
