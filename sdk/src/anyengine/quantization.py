"""Making quantised checkpoints: what is the same whatever engine's toolchain does it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from anyengine.backend import QuantizeJob
from anyengine.errors import InvalidConfig, UnsupportedCapability, UnsupportedParameter
from anyengine.place import describe
from anyengine.plugins import EngineManager
from anyengine.runtime.contract import cause, mapped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anyengine.backend import EnginePlugin

__all__ = ["quantize"]


async def quantize(
    engine: str | EnginePlugin,
    model: str,
    scheme: str,
    output: Path,
    revision: str | None,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """See :meth:`anyengine.Engine.quantize`."""
    plugin, description = describe(engine)
    name, offered = description.name, description.capabilities.quantize
    if not offered:
        raise UnsupportedCapability(f"{name} cannot quantize", capability="quantize", engine=name)
    if scheme not in offered:
        raise UnsupportedParameter(
            f"{name} has no quantization scheme {scheme!r}; it has {', '.join(sorted(offered))}",
            engine=name,
            field="scheme",
            supported=offered,
        )
    await anyio.to_thread.run_sync(_check_output, output)
    from anyengine.hub import resolve_model  # noqa: PLC0415 only who loads a model pays for the import

    files = await anyio.to_thread.run_sync(partial(resolve_model, model, revision=revision, builtin=description.models))
    cancelled = False

    def ignore(_done: int, _total: int) -> None: ...

    job = QuantizeJob(
        model=files, scheme=scheme, output=output, progress=progress or ignore, cancelled=lambda: cancelled
    )
    try:
        hooks: Any = EngineManager(plugin).hook
        await hooks.quantize(job=job)
    except Exception as error:  # noqa: BLE001 mapped, never swallowed
        raise mapped(error, name) from cause(error)
    finally:
        cancelled = True
    return output


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidConfig(f"output: {folder} is there already and not an empty folder", field="output")
