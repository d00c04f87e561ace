"""Bringing vLLM up, and leaving nothing behind where that fails."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyengine.backend.cancellation import despite_cancellation
from anyengine.backend.devices import check_visible_devices
from anyengine.errors import EngineStartupError, UnsupportedParameter

from anyengine_vllm import versions
from anyengine_vllm.checks import check_native
from anyengine_vllm.config import engine_arguments
from anyengine_vllm.errors import load_error
from anyengine_vllm.library import Library, load_library
from anyengine_vllm.logs import ErrorLog, variables
from anyengine_vllm.stats import StatsRecorder, make_stat_logger
from anyengine_vllm.taken import check_taken, dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.process import BaseProcess

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["Running", "start", "stop"]

#: Seconds that the processes of an engine have to end by themselves, before they are killed.
GRACE = 10.0

#: Batch-invariant kernels need the tensor cores of Hopper (compute capability 9.0).
_BATCH_INVARIANT_SINCE = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An engine that is up.

    Attributes:
        llm: ``AsyncLLM``.
        library: vLLM's classes.
        device: ``cpu`` or ``cuda``.
        sent: the arguments that vLLM was given.
        recorder: of its statistics.
        log: what its processes log as errors.
        processes: the engine cores.
    """

    llm: Any
    library: Library
    device: str
    sent: Mapping[str, Any]
    recorder: StatsRecorder
    log: ErrorLog
    processes: tuple[BaseProcess, ...]


async def start(config: EngineConfig, model: ModelFiles) -> Running:
    """Load a model; ready when this returns.

    Raises:
        UnsupportedParameter, InvalidConfig: a field cannot be honoured.
        OutOfMemory, EngineStartupError: vLLM did not come up; nothing of it is left.
    """
    log = ErrorLog()
    before = set(multiprocessing.active_children())
    work = asyncio.ensure_future(asyncio.to_thread(_build, config, model, log, before))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread cannot be interrupted; without its processes it ends by itself.
        try:
            await despite_cancellation(_abandon(work, before))
        finally:
            log.close()
        raise
    except BaseException as error:
        try:
            await despite_cancellation(asyncio.to_thread(_end, _started_since(before)))
        finally:
            lines = log.lines()
            log.close()
        mapped = load_error(error, lines)
        if mapped is None or mapped is error:
            raise
        raise mapped from error


async def _abandon(work: asyncio.Future[Running], before: set[BaseProcess]) -> None:
    while not work.done():
        await asyncio.to_thread(_end, _started_since(before))
        # It may be importing, or about to start a process: looked at again until the thread is through.
        await asyncio.wait([work], timeout=0.2)
    with contextlib.suppress(BaseException):
        await stop(work.result())


def _build(config: EngineConfig, model: ModelFiles, log: ErrorLog, before: set[BaseProcess]) -> Running:
    """Blocks for as long as the model loads."""
    library = load_library()
    device = _device(library)
    arguments = engine_arguments(config, model, device, amx=library.amx)
    check_native(config.native, library.argument_names)
    _check_process(config, library)
    recorder = StatsRecorder()
    with variables(arguments.environment | log.configuration(library.logging)):
        # What is left out (sequences at once, tokens of a step) vLLM sizes by the device for the usage that it is told.
        # Told none, it takes what it has for its own tests: 128 sequences, where its server runs 1,024 on an H200.
        vllm_config = library.engine_args(**arguments.values).create_engine_config(library.serving)
        check_taken(config, arguments.values, vllm_config)
        _check_adapters(config, device, dtype_of(vllm_config))
        llm = library.async_llm.from_vllm_config(
            vllm_config, stat_loggers=[make_stat_logger(library.stat_logger, recorder)], disable_log_stats=True
        )
    return Running(
        llm=llm,
        library=library,
        device=device,
        sent=arguments.values,
        recorder=recorder,
        log=log,
        processes=tuple(_started_since(before)),
    )


def _device(library: Library) -> str:
    device = str(library.platform.device_type)
    if device not in {"cpu", "cuda"}:
        build = "a CPU" if versions.cpu_build() else "a GPU, and sees none here"
        raise EngineStartupError(
            f"vLLM {versions.installed()} finds no device (it reports {device!r}); it is for {build}"
        )
    return device


def _check_process(config: EngineConfig, library: Library) -> None:
    """What has to be true of this process before vLLM starts its own."""
    check_visible_devices(config)
    if config.determinism != "none" and not library.platform.has_device_capability(_BATCH_INVARIANT_SINCE):
        raise UnsupportedParameter(
            "determinism: vLLM's batch-invariant kernels need a GPU of compute capability 9.0 or more",
            field="determinism",
            supported={"none"},
        )


def _check_adapters(config: EngineConfig, device: str, dtype: str) -> None:
    if config.lora is not None and device == "cuda" and dtype == "float32":
        raise UnsupportedParameter(
            "lora: on a GPU vLLM computes adapters in 16 bits only; load with dtype='bfloat16' or 'float16'",
            field="lora",
        )


async def stop(running: Running) -> None:
    """End the engine and its processes. Idempotent."""
    llm = running.llm
    if llm.output_handler is not None:
        # Else it reports the engine that is being ended as dead.
        llm.output_handler.cancel()
    try:
        await asyncio.to_thread(llm.shutdown)
    finally:
        # It ends itself again when it is collected, which may be when the interpreter is half gone.
        llm.shutdown = _nothing
        await asyncio.to_thread(_end, list(running.processes))
        await asyncio.to_thread(_close_sockets, llm)
        running.log.close()


def _close_sockets(llm: Any) -> None:
    """End the threads of the sockets that vLLM has closed, which it leaves."""
    resources = getattr(getattr(llm, "engine_core", None), "resources", None)
    context = getattr(resources, "ctx", None)
    if context is not None and not context.closed:
        context.destroy(linger=0)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Takes the place of a shutdown that has been done."""


def _started_since(before: set[BaseProcess]) -> list[BaseProcess]:
    """The engine cores among this process's children; an application may have others."""
    return [
        process
        for process in multiprocessing.active_children()
        if process not in before and process.name.startswith(("EngineCore", "DPCoordinator", "VLLM"))
    ]


def _end(processes: list[BaseProcess]) -> None:
    """Ask processes to end, and kill those that do not; an engine core ends its own workers."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(GRACE)
        if process.is_alive():
            process.kill()
            process.join(GRACE)
