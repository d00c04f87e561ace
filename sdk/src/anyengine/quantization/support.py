"""Whether an engine can run a checkpoint, told from what its plugin declares, before a weight is read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.errors import UnsupportedParameter
from anyengine.quantization.stored import read_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyengine.backend import CheckpointSupport, QuantizedFormat
    from anyengine.quantization.stored import StoredQuantization

__all__ = ["check_support", "gpu_capability", "processor_instructions", "why_not"]

_PROCESSOR = Path("/proc/cpuinfo")


def check_support(engine: str, support: CheckpointSupport | None, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that the engine does not declare.

    Raises:
        UnsupportedParameter: says what the engine loads instead.
        ModelNotFound: how it is quantised cannot be read.
    """
    reason = why_not(support, folder, config)
    if reason is not None:
        message = f"model: {engine} cannot run {folder.name}: {reason}"
        raise UnsupportedParameter(message, engine=engine, field="model", supported=_known(support))


def _known(support: CheckpointSupport | None) -> list[str]:
    return [] if support is None else sorted({known.scheme for known in support.formats})


def why_not(
    support: CheckpointSupport | None,
    folder: Path,
    config: Mapping[str, Any],
    capability: Callable[[], tuple[int, int] | None] | None = None,
) -> str | None:
    """Why an engine cannot run a checkpoint; None if nothing that it declares speaks against it.

    Args:
        support: what its plugin declares; None: nothing.
        folder: of the checkpoint.
        config: the contents of its config.json.
        capability: asked for the compute capability of the GPU, if it matters; None for :func:`gpu_capability`.

    Raises:
        ModelNotFound: how it is quantised cannot be read.
    """
    if support is None:
        return None
    kind = config.get("model_type")
    if support.architectures is not None and kind not in support.architectures:
        return f"its architecture is {kind!r}; the engine has {', '.join(support.architectures)}"
    stored = read_stored(folder, config)
    if stored is None:
        return None
    found = None if capability is None else capability()
    for scheme in stored.schemes:
        reason = _why_not_scheme(support, stored, scheme, capability=found, ask=capability is None)
        if reason is not None:
            return f"it is quantised ({stored}), and {reason}"
    return None


def _why_not_scheme(
    support: CheckpointSupport,
    stored: StoredQuantization,
    scheme: str,
    *,
    capability: tuple[int, int] | None,
    ask: bool,
) -> str | None:
    """The reason that is nearest to a match: of several declarations, that which fails last."""
    known = [one for one in support.formats if one.method == stored.method]
    if not known:
        return f"the engine reads {_listed({one.method for one in support.formats})}"
    known = [one for one in known if one.scheme == scheme]
    if not known:
        schemes = {one.scheme for one in support.formats if one.method == stored.method}
        return f"the engine has no {scheme} there; it has {_listed(schemes)}"
    known = [one for one in known if one.format in {None, stored.format}]
    if not known:
        formats = {str(one.format) for one in support.formats if (one.method, one.scheme) == (stored.method, scheme)}
        return f"the engine reads {scheme} in format {_listed(formats)}"
    reasons = [_detail(one, stored, capability=capability, ask=ask) for one in known]
    return None if None in reasons else reasons[-1]


def _detail(
    one: QuantizedFormat, stored: StoredQuantization, *, capability: tuple[int, int] | None, ask: bool
) -> str | None:
    if one.group_sizes is not None and not set(stored.group_sizes) <= set(one.group_sizes):
        sizes = _listed({str(size) if size else "whole rows" for size in one.group_sizes})
        return f"the engine has {one.scheme} with groups of {sizes}"
    if not stored.symmetric and not one.asymmetric:
        return f"the engine has {one.scheme} without zero points only"
    if stored.reordered and not one.reordered:
        return f"the engine has {one.scheme} without reordered inputs (desc_act) only"
    if stored.kv_cache is not None and stored.kv_cache not in one.kv_cache:
        return f"the engine does not take the element type of the cache from a checkpoint ({stored.kv_cache})"
    return _hardware(one, gpu_capability() if ask and one.minimum_capability is not None else capability)


def _hardware(one: QuantizedFormat, capability: tuple[int, int] | None) -> str | None:
    """What the machine lacks; what is not known of it speaks for nothing."""
    if one.minimum_capability is not None and capability is not None and capability < one.minimum_capability:
        wanted, has = (".".join(map(str, version)) for version in (one.minimum_capability, capability))
        return f"{one.scheme} needs a GPU of compute capability {wanted}; this one has {has}"
    here = processor_instructions() if one.instructions else None
    missing = set(one.instructions) - here if here is not None else set[str]()
    if missing:
        wanted = ", ".join(one.instructions)
        return f"{one.scheme} needs a processor with {wanted}; this one lacks {_listed(missing)}"
    return None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no quantised checkpoints"


def processor_instructions() -> set[str] | None:
    """Instruction sets of the x86 processor, as Linux names them; None where that is not known, or it is another."""
    try:
        lines = _PROCESSOR.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), None)
    return None if flags is None else set(flags.split())


def gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU, as its driver says; None where that is not known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603 the driver's own program
            [program, "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
        major, _, minor = said.splitlines()[0].strip().partition(".")
        return int(major), int(minor)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
