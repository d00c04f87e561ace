"""Who measures the drift of a new checkpoint: an engine that runs it and the float model in float32, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from anyengine.errors import AnyEngineError, InvalidConfig, UnknownEngine
from anyengine.quantization.calibration import sha256_of
from anyengine.quantization.drift import compare, held_out_texts, scores_of
from anyengine.quantization.manifest import MeasuredDrift
from anyengine.quantization.support import why_not

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.outputs import TokenLogprobs

__all__ = ["AUTO", "ORACLES", "measured"]

AUTO = "auto"
#: Engines that may be it, in this order.
ORACLES = ("reference", "transformers")
#: Bytes of float weights beyond which the reference engine is not asked: NumPy would take hours.
_LARGE = 2 * 2**30


async def measured(oracle: str | None, source: Path, made: Path) -> tuple[MeasuredDrift | None, str | None]:
    """The drift, or why it was not measured.

    Args:
        oracle: name of the engine; ``auto`` for the first of :data:`ORACLES` that can run both; None not to measure.
        source: the float checkpoint.
        made: the quantised one.

    Raises:
        AnyEngineError: the engine that was named cannot run them.
    """
    if oracle is None:
        return None, "it was not asked for"
    if oracle != AUTO:
        return await _measure(oracle, source, made), None
    reasons: list[str] = []
    for name in ORACLES:
        reason = await anyio.to_thread.run_sync(_unsuitable, name, source, made)
        if reason is None:
            try:
                return await _measure(name, source, made), None
            except AnyEngineError as error:
                reason = error.message
                for folder in (source, made):  # a path of this machine means nothing in a manifest
                    reason = reason.replace(str(folder), folder.name)
        reasons.append(f"{name}: {reason}")
    return None, "; ".join(reasons)


def _unsuitable(name: str, source: Path, made: Path) -> str | None:
    """Why an engine cannot be the oracle here."""
    from anyengine.hub import read_config  # noqa: PLC0415 only who quantises pays for these imports
    from anyengine.place import describe  # noqa: PLC0415

    try:
        _, description = describe(name)
    except (UnknownEngine, InvalidConfig):
        return "is not installed here"
    if description.unavailable is not None:
        return description.unavailable
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    if name == "reference" and size > _LARGE:
        return f"takes too long for {size / 2**30:.0f} GiB of weights"
    if description.checkpoints is None:
        return "does not say which checkpoints it loads"
    return why_not(description.checkpoints, made, read_config(made), capability=lambda: None)


async def _measure(name: str, source: Path, made: Path) -> MeasuredDrift:
    scores: list[list[list[TokenLogprobs]]] = []
    version: Any = None
    for folder in (source, made):
        from anyengine.engine import Engine  # noqa: PLC0415 see above

        try:
            async with Engine.load(name, model=str(folder), dtype="float32") as engine:
                scores.append(await scores_of(engine, held_out_texts()))
        except AnyEngineError as error:
            error.add_note(f"while the drift of {folder.name} was measured")
            raise
    from anyengine.place import describe  # noqa: PLC0415 see above

    version = describe(name)[1].engine_version
    drift = compare(*scores)
    return MeasuredDrift(
        oracle=f"{name} {version}",
        texts_sha256=sha256_of(held_out_texts()),
        **msgspec.structs.asdict(drift),
    )
