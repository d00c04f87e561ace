"""Bringing TensorRT-LLM up, and leaving nothing behind where that fails."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyengine.backend.devices import check_visible_devices

from anyengine_trtllm import built
from anyengine_trtllm.checks import check_config
from anyengine_trtllm.config import engine_arguments
from anyengine_trtllm.errors import load_error
from anyengine_trtllm.library import Library, load_library
from anyengine_trtllm.options import Options, check_arguments, parse_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["Running", "start", "stop", "watch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An engine that is up.

    Attributes:
        llm: ``LLM``.
        library: TensorRT-LLM's classes.
        options: what ``native`` said.
        arguments: what it was started with.
        limits: of an engine that was built before, by the names of its ``BuildConfig``.
    """

    llm: Any
    library: Library
    options: Options
    arguments: dict[str, Any]
    limits: dict[str, int] = field(default_factory=dict[str, int])


async def start(config: EngineConfig, model: ModelFiles) -> Running:
    """Load a model; ready when this returns.

    Raises:
        UnsupportedParameter, InvalidConfig: a field cannot be honoured.
        OutOfMemory, EngineStartupError: TensorRT-LLM did not come up.
    """
    options = parse_options(config)
    check_config(config, options)
    check_visible_devices(config)
    work = asyncio.ensure_future(asyncio.to_thread(_build, config, model, options))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread cannot be interrupted, and its processes are MPI's: what comes up late is ended at once. In a
        # worker, where an engine belongs, the whole group of processes goes with the worker.
        work.add_done_callback(_discard)
        raise
    except BaseException as error:
        mapped = load_error(error)
        if mapped is None or mapped is error:
            raise
        raise mapped from error


def _build(config: EngineConfig, model: ModelFiles, options: Options) -> Running:
    """Blocks for as long as the model loads."""
    library = load_library(tensorrt=options.tensorrt)
    check_arguments(options.arguments, library.argument_names)
    arguments = engine_arguments(config, model, options, library)
    if options.tensorrt:
        llm, arguments, limits = built.bring_up(library, config, options, arguments)
    else:
        llm, limits = library.llm(**arguments), {}
    return Running(llm=llm, library=library, options=options, arguments=arguments, limits=limits)


def _discard(work: asyncio.Future[Running]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.get_loop().run_in_executor(None, work.result().llm.shutdown)


def watch(llm: Any, ended: Callable[[str], None]) -> None:
    """Tell it when a process of the executor ends, on the running loop; what it says of why.

    TensorRT-LLM itself looks for that when another request is handed over, or answers: those that wait, wait for ever.
    There is no public way to ask.
    """
    loop = asyncio.get_running_loop()

    def done(future: Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        why = "its log says why" if error is None else f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ended, why)

    for future in getattr(getattr(llm, "_executor", None), "mpi_futures", None) or ():
        future.add_done_callback(done)


async def stop(running: Running) -> None:
    """End the engine and its processes. Idempotent."""
    with contextlib.suppress(RuntimeError):  # it is shut down already
        await asyncio.to_thread(running.llm.shutdown)
