"""What toolchains in PyTorch have in common, for plugins that quantise with one."""

from __future__ import annotations

import errno
import shutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyengine.backend.releases import installed_version
from anyengine.errors import UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from anyengine.backend.checkpoints import QuantizeJob

__all__ = ["Cancelled", "group_size", "load_model", "save_checkpoint", "tool_versions", "unfit"]

#: Of what lies beside the weights: tokenizer, chat template, generation config, licence.
_COPIED = frozenset({".json", ".jinja", ".md", ".model", ".txt"})


class Cancelled(Exception):
    """Raised where a toolchain can be stopped, once the caller has asked for it; ends the job."""


def unfit(job: QuantizeJob, reason: str, *, engine: str) -> UnsupportedParameter:
    """What is raised for a model that a toolchain cannot do."""
    return UnsupportedParameter(f"model: {job.model.name}: {reason}", engine=engine, field="model")


def load_model(job: QuantizeJob, *, engine: str) -> Any:
    """The job's float model, by transformers, in its own data type, on the CPU.

    Raises:
        UnsupportedParameter: transformers does not know this kind of model.
    """
    transformers: Any = import_module("transformers")  # heavy, and not everywhere
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(job.model.path, dtype="auto", local_files_only=True)
    except (ValueError, KeyError) as error:
        raise unfit(
            job, f"transformers {installed_version('transformers')} cannot load it: {error}", engine=engine
        ) from error
    return model.eval()


def group_size(scheme: str, inputs: Collection[int], sizes: Sequence[int], *, engine: str) -> int:
    """The first of the sizes that divides the inputs of every matrix.

    Raises:
        UnsupportedParameter: none does.
    """
    for size in sizes:
        if not any(number % size for number in inputs):
            return size
    *others, last = map(str, sizes)
    found = ", ".join(map(str, sorted(set(inputs))))
    raise UnsupportedParameter(
        f"scheme: {scheme} needs groups of {' or '.join(filter(None, (', '.join(others), last)))}, which do not divide "
        f"matrices of {found} inputs",
        engine=engine,
        field="scheme",
    )


def save_checkpoint(save: Callable[[], object], source: Path, output: Path) -> None:
    """Write the weights, and copy what lies beside those of the source and is not there yet.

    Args:
        save: writes ``config.json`` and safetensors into `output`.
        source: folder of the checkpoint that was quantised.
        output: folder of the new one.

    Raises:
        OSError: the disk is full.
    """
    try:
        save()
    except Exception as error:  # safetensors has an error of its own for what the system says
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise
    for file in source.iterdir():
        kept = file.suffix in _COPIED and not file.name.endswith(".index.json")
        if file.is_file() and kept and not (output / file.name).exists():
            shutil.copyfile(file, output / file.name)


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {name: installed_version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}
