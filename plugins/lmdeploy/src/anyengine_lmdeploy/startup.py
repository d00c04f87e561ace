"""Bringing LMDeploy up, and leaving nothing behind where that fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyengine.backend.cancellation import despite_cancellation
from anyengine.backend.devices import check_visible_devices
from anyengine.backend.dtypes import own_dtype
from anyengine.errors import EngineStartupError, InvalidConfig

from anyengine_lmdeploy.checks import check_config, unsupported, why_not_on
from anyengine_lmdeploy.config import RESERVED_BLOCKS, Arguments, engine_arguments
from anyengine_lmdeploy.errors import load_error
from anyengine_lmdeploy.library import Library, load_library
from anyengine_lmdeploy.options import BackendName, check_arguments, needs_pytorch, parse_options

if TYPE_CHECKING:
    from collections.abc import Generator

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_lmdeploy.options import Options

__all__ = ["Running", "block_size", "capacity_tokens", "dtype_of", "start", "stop"]

#: Seconds that the loop of the engine in PyTorch may take to end.
_GRACE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An engine that is up.

    Attributes:
        engine: ``AsyncEngine``.
        library: LMDeploy's classes.
        arguments: what it was started with.
    """

    engine: Any
    library: Library
    arguments: Arguments

    @property
    def backend(self) -> BackendName:
        """Which of the two engines it is."""
        return self.arguments.backend


def block_size(running: Running) -> int:
    """Tokens of a block of the cache that LMDeploy made."""
    if running.backend == "turbomind":
        return int(running.engine.backend_config.cache_block_seq_len)
    return int(running.engine.engine.cache_config.block_size)


def dtype_of(running: Running) -> str:
    """What the model is computed in, by its name."""
    if running.backend == "turbomind":
        return str(running.engine.backend_config.dtype)
    return str(running.engine.engine.model_config.dtype).removeprefix("torch.")


def capacity_tokens(running: Running) -> int | None:
    """Tokens that the cache holds; TurboMind does not say how many blocks a share of memory came to."""
    if running.backend == "turbomind":
        return None
    return (int(running.engine.engine.cache_config.num_gpu_blocks) - RESERVED_BLOCKS) * block_size(running)


async def start(config: EngineConfig, model: ModelFiles) -> Running:
    """Load a model; ready when this returns.

    Raises:
        UnsupportedParameter, InvalidConfig: a field cannot be honoured.
        OutOfMemory, EngineStartupError: LMDeploy did not come up.
    """
    options = parse_options(config)
    check_visible_devices(config)
    log: list[str] = []
    work = asyncio.ensure_future(asyncio.to_thread(_build, config, model, options, log))
    try:
        running = await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread cannot be interrupted; what comes up late is ended at once.
        work.add_done_callback(_discard)
        raise
    except BaseException as error:
        mapped = load_error(error, log)
        if mapped is None or mapped is error:
            raise
        raise mapped from error
    try:
        # Before its loop runs: one that is just about to begin is not ended by closing the engine.
        _check_came_out(config, model, running)
    except BaseException:
        await despite_cancellation(stop(running))
        raise
    # The engine in PyTorch belongs to the loop that it is started on; TurboMind has threads of its own.
    running.engine.start_loop(asyncio.get_running_loop(), use_async_api=True)
    return running


def _build(config: EngineConfig, model: ModelFiles, options: Options, log: list[str]) -> Running:
    """Blocks for as long as the model loads."""
    library = load_library()
    backend = _chosen(config, model, options, library)
    check_config(config, model, backend, library.torch)
    arguments = engine_arguments(config, model, options, backend, library.device_memory)
    check_arguments(options.arguments, library.argument_names[backend] | {"speculative_config"}, backend)
    # Else both engines write a line or more for each request, as LMDeploy's own pipeline does not.
    os.environ.setdefault("TM_LOG_LEVEL", "WARNING")
    logging.getLogger("lmdeploy").setLevel(logging.WARNING)
    with _errors_of("lmdeploy", log):
        try:
            engine = library.async_engine(
                str(model.path),
                backend=backend,
                backend_config=library.configurations[backend](**arguments.config),
                speculative_config=None
                if arguments.speculative is None
                else library.speculative_config(**arguments.speculative),
                **arguments.engine,
            )
        except SystemExit as error:
            # Its checks end the process. In a thread that would reach nobody who knows what to do.
            raise load_error(error, log) or EngineStartupError("LMDeploy did not come up") from error
    return Running(engine=engine, library=library, arguments=arguments)


def _chosen(config: EngineConfig, model: ModelFiles, options: Options, library: Library) -> BackendName:
    """TurboMind where it has everything that is asked for and reads the checkpoint, as LMDeploy's own pipeline does."""
    if options.backend is not None:
        return options.backend
    if needs_pytorch(config) is not None or "speculative_config" in options.arguments:
        return "pytorch"
    if why_not_on("turbomind", model) is not None and why_not_on("pytorch", model) is None:
        return "pytorch"
    try:
        return "turbomind" if library.turbomind_runs(str(model.path), config.trust_remote_code) else "pytorch"
    except Exception as error:
        raise load_error(error, ()) or error from error


def _check_came_out(config: EngineConfig, model: ModelFiles, running: Running) -> None:
    """Hold what was asked for against what LMDeploy made of it, which it changes with a warning at most.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
    """
    # TurboMind takes another where it has no kernel, and the engine in PyTorch where the device has no bfloat16.
    _same("dtype", own_dtype(model.config) if config.dtype == "auto" else config.dtype, dtype_of(running))
    if running.backend == "turbomind":
        return
    inner = running.engine.engine
    cache, length, asked = inner.cache_config, int(inner.max_session_len), running.arguments.config
    # Large heads, and families with a cache of their own (``ExecutorBase._adjust_block_size``).
    _same("kv_cache.block_size", config.kv_cache.block_size, int(cache.block_size))
    if "num_gpu_blocks" in asked:
        _same(
            "kv_cache.capacity_tokens",
            (asked["num_gpu_blocks"] - RESERVED_BLOCKS) * asked["block_size"],
            capacity_tokens(running),
        )
    # Sliding windows (``ExecutorBase._maybe_disable_unsupported_prefix_caching``).
    _same("kv_cache.prefix_caching", config.kv_cache.prefix_caching, bool(cache.enable_prefix_caching))
    # It halves them until memory suffices (``ExecutorBase._get_runtime_size``).
    wanted = config.scheduling.max_num_batched_tokens
    _same("scheduling.max_num_batched_tokens", wanted, int(cache.max_prefill_token_num))
    if config.max_model_len is not None and config.max_model_len > length:
        # A longer prompt would be refused, and an answer cut (``Engine._get_max_session_len``).
        raise InvalidConfig(
            f"max_model_len: LMDeploy's cache holds a context of {length} here, not of {config.max_model_len}; ask for "
            "that, or give the cache more (kv_cache)",
            field="max_model_len",
        )


def _same(field: str, wanted: object, got: object) -> None:
    """What nobody asked for is whatever LMDeploy made of it."""
    if wanted is not None and wanted != got:
        raise unsupported(field, f"LMDeploy would go on with {got} here, not with {wanted}", {str(got)})


@contextlib.contextmanager
def _errors_of(name: str, lines: list[str]) -> Generator[None]:
    """What a logger says at level ERROR or above, line by line."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(record.getMessage().splitlines())

    handler = Collector(logging.ERROR)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _discard(work: asyncio.Future[Running]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.get_loop().run_in_executor(None, work.result().engine.close)


async def stop(running: Running) -> None:
    """End the engine. Idempotent."""
    engine = running.engine
    if running.backend == "pytorch":
        # It cancels its own loop, on the loop that both live on; what it holds goes when that has ended.
        inner = engine.engine
        engine.close()
        await asyncio.wait([asyncio.ensure_future(_ended(inner))], timeout=_GRACE)
    else:
        await asyncio.to_thread(engine.close)
    await asyncio.to_thread(_release, running.library.torch)


async def _ended(inner: Any) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await inner.wait_tasks()


def _release(torch: Any) -> None:
    """Device memory that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()
