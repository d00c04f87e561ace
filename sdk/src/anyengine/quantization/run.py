"""Making a quantised checkpoint: what is the same whatever engine's toolchain does it.

The toolchain writes into a folder beside the output; what it wrote is measured, gets its manifest, and only then is
moved to where the caller wants it. Whatever goes wrong, and on cancellation, that folder is deleted before the call
ends, and nothing more is written afterwards.
"""

from __future__ import annotations

import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from anyengine._concurrency import despite_cancellation
from anyengine.environments.steps import is_full
from anyengine.errors import InvalidConfig, OutOfSpace
from anyengine.place import Here
from anyengine.quantization.calibration import calibration_of
from anyengine.quantization.make import make
from anyengine.quantization.manifest import Manifest, hashes, write_manifest
from anyengine.quantization.oracle import measured
from anyengine.quantization.place import choose_quantizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine.backend import EnginePlugin
    from anyengine.place import Worker
    from anyengine.quantization.calibration import Calibration
    from anyengine.quantization.make import Made

__all__ = ["quantize"]


async def quantize(
    engine: str | EnginePlugin,
    *,
    model: str,
    scheme: str,
    output: Path,
    revision: str | None,
    calibration: object,
    oracle: str | None,
    isolation: str,
    environment: str | None,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """See :meth:`anyengine.Engine.quantize`."""
    text = calibration_of(calibration)
    place = choose_quantizer(engine, scheme, text, isolation=isolation, environment=environment)
    name = place.description.name if isinstance(place, Here) else place.engine
    unfinished = _beside(output)
    try:
        # asyncio's own cancellation leaves a thread to itself, and it would write while its folder is deleted.
        await despite_cancellation(anyio.to_thread.run_sync(_begin, output, unfinished))
        made = await _make(place, model, revision, scheme, unfinished, text, progress or _ignore)
        drift, reason = await measured(oracle, Path(made.path), unfinished)
        manifest = Manifest(
            engine=name,
            scheme=scheme,
            source=made.source,
            recipe=made.report.recipe,
            calibration=made.calibration,
            tools=made.tools,
            drift=drift,
            drift_unmeasured=reason,
            files={},
        )
        await despite_cancellation(anyio.to_thread.run_sync(_seal, unfinished, Path(made.path), manifest))
        await despite_cancellation(anyio.to_thread.run_sync(_move, unfinished, output))
    except OSError as error:
        if is_full(error):
            raise OutOfSpace(f"output: the disk is full: {error}", engine=name, field="output") from error
        raise InvalidConfig(f"output: {output} cannot be written: {error}", engine=name, field="output") from error
    finally:
        await despite_cancellation(anyio.to_thread.run_sync(partial(shutil.rmtree, unfinished, ignore_errors=True)))
    return output


def _ignore(_done: int, _total: int) -> None: ...


async def _make(
    place: Here | Worker,
    model: str,
    revision: str | None,
    scheme: str,
    folder: Path,
    calibration: Calibration | None,
    progress: Callable[[int, int], None],
) -> Made:
    if isinstance(place, Here):
        return await make(
            place.plugin,
            place.description,
            model=model,
            revision=revision,
            scheme=scheme,
            folder=folder,
            calibration=calibration,
            progress=progress,
        )
    from anyengine.worker.quantizing import make_in_worker  # noqa: PLC0415 only who needs a worker pays for it

    return await make_in_worker(
        place,
        model=model,
        revision=revision,
        scheme=scheme,
        folder=folder,
        calibration=calibration,
        progress=progress,
    )


def _beside(output: Path) -> Path:
    """A place for the folder that the work is done in."""
    return output.absolute().parent / f".{output.name}-{secrets.token_hex(4)}"


def _begin(output: Path, unfinished: Path) -> None:
    """Make the folder that the work is done in."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidConfig(f"output: {output} is there already and not an empty folder", field="output")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(mode=0o700)
    except OSError as error:
        if is_full(error):
            raise OutOfSpace(f"output: the disk is full: {error}", field="output") from error
        raise InvalidConfig(f"output: {output} cannot be made: {error}", field="output") from error


def _seal(unfinished: Path, source: Path, manifest: Manifest) -> None:
    """Hash everything, write the manifest, and let those read it who may read the source."""
    import msgspec  # noqa: PLC0415 heavy for who only imports this

    files = hashes(file for file in unfinished.iterdir() if file.is_file())
    write_manifest(unfinished, msgspec.structs.replace(manifest, files=files))
    # Who may read the source may read what was made of it: a toolchain's temporary files are its owner's alone.
    mode = (source / "config.json").stat().st_mode & 0o777
    for file in unfinished.iterdir():
        file.chmod(mode)
    unfinished.chmod(source.stat().st_mode & 0o777)


def _move(unfinished: Path, output: Path) -> None:
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
