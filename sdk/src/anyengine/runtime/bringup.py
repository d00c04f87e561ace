"""From a plugin and a configuration to a running engine in this process."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread

from anyengine._concurrency import despite_cancellation
from anyengine.backend import Backend, BackendInfo
from anyengine.errors import AnyEngineError, EngineStartupError, InvalidConfig, PluginError
from anyengine.plugins import EngineManager
from anyengine.runtime.checks import check_config
from anyengine.runtime.contract import broken, cancelled_itself, check_types, words

if TYPE_CHECKING:
    from anyengine.backend import EngineDescription, EnginePlugin
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.runtime.local import LocalRuntime

__all__ = ["bring_up"]


async def bring_up(
    plugin: EnginePlugin, description: EngineDescription, config: EngineConfig
) -> tuple[ModelFiles, LocalRuntime]:
    """Resolve the checkpoint and load it.

    Raises:
        UnsupportedParameter, InvalidConfig: the configuration cannot be honoured.
        ModelNotFound, OutOfMemory, EngineStartupError, PluginError: the engine did not come up; all is released.
    """
    from anyengine.hub import resolve_model  # noqa: PLC0415 only who loads a model pays for these imports
    from anyengine.runtime.local import LocalRuntime  # noqa: PLC0415
    from anyengine.text.tokenizer import TextTokenizer  # noqa: PLC0415

    name = description.name
    if description.unavailable is not None and not description.attached(config):
        from anyengine.environments.description import why_unavailable  # noqa: PLC0415 only a failure needs it

        raise EngineStartupError(f"{name} cannot run here: {why_unavailable(description)}", engine=name)
    check_config(name, description.capabilities, config)
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
            weights=() if description.attached(config) else description.weights,
        )
    )
    await anyio.to_thread.run_sync(_check_checkpoint, description, config, model)
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
        check_types(name, backend.info)
        return model, LocalRuntime(name, config, model, tokenizer, manager, backend, description.weights)
    except BaseException as error:
        if backend is not None:
            await despite_cancellation(_close_half_loaded(backend, error))
        raised = _raised(error, name)
        if raised is error:
            raise
        raise raised from error


def _raised(error: BaseException, name: str) -> BaseException:
    """What is raised for what a load has raised: our own errors, and a cancellation, as they are."""
    if isinstance(error, AnyEngineError):
        error.engine = error.engine or name
        return error
    if isinstance(error, asyncio.CancelledError) and cancelled_itself():
        return broken(name, "cancelled its own loading")
    if not isinstance(error, Exception):
        return error
    message = f"{name} raised {type(error).__name__} while loading, which its plugin does not map: {words(error)}"
    return PluginError(message, engine=name)


def _check_checkpoint(description: EngineDescription, config: EngineConfig, model: ModelFiles) -> None:
    """Refuse, before any weight is read, what the engine does not declare, and what is not as its manifest says.

    Where the engine runs elsewhere, so do the weights.
    """
    if description.attached(config):
        return
    from anyengine.quantization import check_manifest  # noqa: PLC0415 see bring_up
    from anyengine.quantization.support import check_support  # noqa: PLC0415

    for files in (model, *([model.draft] if model.draft else ())):
        check_support(description.name, description.checkpoints, files.path, files.config)
        check_manifest(files.path)


async def _close_half_loaded(backend: Backend, error: BaseException) -> None:
    """Release what a load took that came to nothing; ``error`` says why it did, and stays the one that is raised."""
    try:
        await backend.close()
    except Exception as second:  # noqa: BLE001 noted
        error.add_note(f"and then close raised {type(second).__name__}: {words(second)}")
