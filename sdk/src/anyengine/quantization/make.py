"""The part of quantising that is done where the engine's toolchain is: here, or in a worker."""

from __future__ import annotations

import asyncio
import re
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from msgspec import Struct

from anyengine._concurrency import despite_cancellation
from anyengine.backend import QuantizeJob, QuantizeReport
from anyengine.backend.model_config import text_config
from anyengine.environments.description import how_to_make, why_unavailable
from anyengine.environments.steps import is_full
from anyengine.errors import (
    ModelNotFound,
    OutOfSpace,
    PluginError,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.plugins import EngineManager
from anyengine.quantization.calibration import Drawn, draw
from anyengine.quantization.manifest import Source, hashes
from anyengine.quantization.stored import read_stored
from anyengine.runtime.contract import cause, check_types, mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.backend import EngineDescription, EnginePlugin
    from anyengine.hub import ModelFiles
    from anyengine.quantization.calibration import Calibration

__all__ = ["Made", "check_scheme", "make"]


class Made(Struct, frozen=True, kw_only=True):
    """What was made, for the manifest.

    Attributes:
        source: the float checkpoint.
        path: its folder.
        report: what the plugin says.
        tools: name → version.
        calibration: what was drawn.
    """

    source: Source
    path: str
    report: QuantizeReport
    tools: dict[str, str]
    calibration: Drawn | None = None


def check_scheme(description: EngineDescription, scheme: str, calibration: Calibration | None) -> None:
    """Refuse a scheme that the engine does not make, and text for one that takes none.

    Raises:
        UnsupportedCapability, UnsupportedParameter: says what it makes.
    """
    name, capabilities = description.name, description.capabilities
    if not capabilities.quantize:
        # Its toolchain's environment, or, where both share one, the engine's.
        hint = how_to_make(name, description.environments, quantize=True) or why_unavailable(description)
        message = f"{name} cannot quantize here" + (f": {hint}" if hint else "")
        raise UnsupportedCapability(message, capability="quantize", engine=name)
    if scheme not in capabilities.quantize:
        raise UnsupportedParameter(
            f"{name} has no quantization scheme {scheme!r}; it has {', '.join(sorted(capabilities.quantize))}",
            engine=name,
            field="scheme",
            supported=capabilities.quantize,
        )
    if calibration is not None and scheme not in capabilities.calibrated:
        raise UnsupportedParameter(
            f"calibration: {name} takes no text for {scheme}; leave it out"
            + (f" (it is for {', '.join(sorted(capabilities.calibrated))})" if capabilities.calibrated else ""),
            engine=name,
            field="calibration",
            supported=capabilities.calibrated,
        )


async def make(
    plugin: EnginePlugin,
    description: EngineDescription,
    *,
    model: str,
    revision: str | None,
    scheme: str,
    folder: Path,
    calibration: Calibration | None,
    progress: Callable[[int, int], None],
) -> Made:
    """Have the plugin write a checkpoint into an empty folder, and see that it is one.

    When this returns or raises nothing more is written, also when it is cancelled.

    Raises:
        UnsupportedCapability, UnsupportedParameter: not this scheme, or not this model.
        InvalidConfig: the calibration text does not do.
        ModelNotFound: the source is unusable.
        OutOfSpace: the disk is full, or will be.
        PluginError: what was written is no quantised checkpoint.
    """
    check_scheme(description, scheme, calibration)
    name = description.name
    from anyengine.hub import resolve_model  # noqa: PLC0415 only who loads a model pays for the import

    files = await anyio.to_thread.run_sync(partial(resolve_model, model, revision=revision, builtin=description.models))
    _require_float(name, files)
    await anyio.to_thread.run_sync(_require_space, files.path, folder, scheme)
    sequences, drawn = None, None
    if scheme in description.capabilities.calibrated:
        sequences, drawn = await anyio.to_thread.run_sync(_drawn, calibration, files)
    source = await anyio.to_thread.run_sync(_source, files)
    report = await _run(
        plugin,
        name,
        partial(
            QuantizeJob,
            model=files,
            scheme=scheme,
            output=folder,
            calibration=sequences,
            seed=drawn.seed if drawn else 0,
            progress=progress,
        ),
    )
    await anyio.to_thread.run_sync(_require_checkpoint, name, folder)
    tools = {"anyengine": version("anyengine"), f"anyengine-{name}": description.plugin_version, **report.tools}
    return Made(source=source, path=str(files.path), report=report, tools=tools, calibration=drawn)


async def _run(plugin: EnginePlugin, name: str, job: Callable[..., QuantizeJob]) -> QuantizeReport:
    cancelled = False
    hooks: Any = EngineManager(plugin).hook
    task: asyncio.Task[object] = asyncio.ensure_future(hooks.quantize(job=job(cancelled=lambda: cancelled)))
    try:
        report = await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled = True

        async def ended() -> None:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # that it was cancelled is all there is to say

        await despite_cancellation(ended())
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise OutOfSpace(f"output: the disk is full: {error}", engine=name, field="output") from error
        raise mapped(error, name) from cause(error)
    if not isinstance(report, QuantizeReport):
        raise PluginError(f"quantize of {name} returned a {type(report).__name__}, not a QuantizeReport", engine=name)
    check_types(name, report)
    return report


def _require_float(engine: str, files: ModelFiles) -> None:
    stored = read_stored(files.path, files.config)
    if stored is not None:
        raise UnsupportedParameter(
            f"model: {files.name} is quantised already ({stored}); quantise the checkpoint that it was made from",
            engine=engine,
            field="model",
        )


def _require_space(source: Path, folder: Path, scheme: str) -> None:
    """Refuse what certainly will not fit, before hours are spent on it."""
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    bits = int((re.findall(r"[48](?=-|$)", scheme) or ["4"])[0])
    # Of weights in float32; of others, and with what stays in float, it takes more.
    least = weights * bits // 32
    free = shutil.disk_usage(folder).free
    if free < least:
        raise OutOfSpace(
            f"output: {folder.parent} has {free / 1e6:.0f} MB free, and the checkpoint takes at least "
            f"{least / 1e6:.0f} MB",
            field="output",
        )


def _drawn(calibration: Calibration | None, files: ModelFiles) -> tuple[list[list[int]], Drawn]:
    from anyengine.quantization.calibration import Calibration  # noqa: PLC0415 see above
    from anyengine.text.tokenizer import TextTokenizer  # noqa: PLC0415

    tokenizer = TextTokenizer.load(files.tokenizer_path)
    context: Any = text_config(files.config).get("max_position_embeddings")
    return draw(
        calibration or Calibration(),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        context if isinstance(context, int) else None,
    )


def _source(files: ModelFiles) -> Source:
    wanted = [
        file
        for file in files.path.iterdir()
        if file.is_file() and file.suffix in {".json", ".safetensors", ".jinja", ".model", ".txt"}
    ]
    # A path of this machine means nothing elsewhere, and may tell more than its owner wants.
    local = Path(files.name).expanduser().resolve() == files.path
    name = files.path.name if local else files.name
    return Source(model=name, revision=files.revision, files=hashes(wanted))


def _require_checkpoint(engine: str, folder: Path) -> None:
    from anyengine.hub import read_config  # noqa: PLC0415 see above
    from anyengine.hub.weights import check_weights  # noqa: PLC0415

    try:
        check_weights(folder)
        stored = read_stored(folder, read_config(folder))
    except ModelNotFound as error:
        raise PluginError(f"quantize of {engine} wrote no whole checkpoint: {error}", engine=engine) from error
    if stored is None:
        raise PluginError(
            f"quantize of {engine} wrote a checkpoint that does not say how it is quantised (no quantization_config)",
            engine=engine,
        )
