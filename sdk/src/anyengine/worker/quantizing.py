"""The application's side of quantising in a worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine._concurrency import despite_cancellation
from anyengine.errors import AnyEngineError
from anyengine.quantization.make import Made
from anyengine.worker.client import end_worker, greeted_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyengine.place import Worker
    from anyengine.quantization.calibration import Calibration

__all__ = ["make_in_worker"]

#: Seconds within which the worker's process has to start and greet.
_STARTUP_SECONDS = 120.0


async def make_in_worker(
    place: Worker,
    *,
    model: str,
    revision: str | None,
    scheme: str,
    folder: Path,
    calibration: Calibration | None,
    progress: Callable[[int, int], None],
) -> Made:
    """:func:`anyengine.quantization.make.make` in a worker that is there for this alone, and gone afterwards.

    Raises:
        EngineStartupError: the worker did not start, or speaks another protocol.
        EngineDied, EngineUnresponsive: it ended before it was done.
        AnyEngineError: whatever the work raises.
    """
    process, connection = await greeted_worker(place, {}, startup_timeout=_STARTUP_SECONDS)
    connection.progress = progress
    arguments: dict[str, Any] = {
        "engine": place.engine,
        "model": model,
        "scheme": scheme,
        "folder": str(folder),
        "log_level": process.log_level,
    }
    if revision is not None:
        arguments["revision"] = revision
    if calibration is not None:
        arguments["calibration"] = calibration.to_dict()
    job = asyncio.ensure_future(connection.call("quantize", Made, **arguments))
    try:
        await asyncio.wait([job])
        return job.result()[1]
    except AnyEngineError as error:
        error.engine = error.engine or place.engine
        raise
    finally:
        await despite_cancellation(end_worker(process, connection, job))
