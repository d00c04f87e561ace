"""Quantising with TGI's own command, ``text-generation-server quantize``: GPTQ, 4 bits, on a GPU.

Options and what is written are those of 3.3.7 (``server/text_generation_server/cli.py``, ``layers/gptq/quantize.py``).
The command fits to 128 sequences of 2048 tokens of wikitext2, which it fetches itself and draws without a seed: no text
can be handed in, and two runs differ. By contract: it was never run here.
"""

from __future__ import annotations

import errno
import json
import os
import re
from shutil import which
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from anyengine.backend import QuantizeReport
from anyengine.backend.quantizing import group_size, save_checkpoint
from anyengine.errors import EngineDied, Failure, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anyengine.backend import QuantizeJob

__all__ = ["PROGRAM", "SCHEMES", "arguments", "installed", "quantize"]

NAME = "tgi"
PROGRAM = "text-generation-server"
#: Not calibrated, as the SDK has the word: text of the caller's is refused.
SCHEMES = frozenset({"int4-gptq"})
#: Those that Marlin's kernels have; the largest that divides the inputs of every matrix is taken.
_GROUP_SIZES = (128, 64, 32)
_ASK_EVERY = 0.2
#: Seconds that it is given to end by itself: less than the SDK gives a worker.
_PATIENCE = 5.0
_LAYER = re.compile(r"Quantizing layer (\d+)/(\d+)")


def installed() -> bool:
    """Whether the command is on the path."""
    return which(PROGRAM) is not None


def arguments(source: Path, output: Path, size: int) -> list[str]:
    """Of the command."""
    return ["quantize", str(source), str(output), "--groupsize", str(size)]


async def quantize(job: QuantizeJob) -> QuantizeReport:
    """Run the command, and see it end.

    Raises:
        UnsupportedParameter: no group size fits this model.
        OutOfMemory: memory does not suffice.
        Failure: the command failed; with its last words.
        OSError: the disk is full.
    """
    from anyengine_server import ServerProcess  # noqa: PLC0415 brings an HTTP client

    size = group_size(job.scheme, await anyio.to_thread.run_sync(_inputs, job.model.path), _GROUP_SIZES, engine=NAME)
    command = [which(PROGRAM) or PROGRAM, *arguments(job.model.path, job.output, size)]
    process = await ServerProcess.start(command, name=NAME, environment=_environment(os.environ))
    try:
        while await process.death(_ASK_EVERY) is None:
            if job.cancelled():
                raise Failure("quantising was cancelled", engine=NAME)
            for found in filter(None, map(_LAYER.search, reversed(process.log()))):
                job.progress(int(found[1]) - 1, int(found[2]))
                break
    finally:
        await process.stop(_PATIENCE)
    if process.exit_status != 0:
        raise _failure(process.died(), job)
    await anyio.to_thread.run_sync(save_checkpoint, lambda: None, job.model.path, job.output)
    recipe = {"bits": 4, "groupsize": size, "dataset": "wikitext2, 128 sequences of 2048 tokens, drawn without a seed"}
    return QuantizeReport(recipe={f"{PROGRAM} quantize": recipe})


def _environment(surroundings: Mapping[str, str]) -> dict[str, str]:
    """Without what would have it read other weights or wait for other processes, and with lines as they are written."""
    dropped = {"RANK", "WEIGHTS_CACHE_OVERRIDE", "WORLD_SIZE"}
    return {name: value for name, value in surroundings.items() if name not in dropped} | {"PYTHONUNBUFFERED": "1"}


def _inputs(folder: Path) -> list[int]:
    """Of the matrices of the decoder's layers, by the headers of the files.

    https://huggingface.co/docs/safetensors#format
    """
    found: set[int] = set()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if ".layers." in name and name.endswith(".weight") and len(entry["shape"]) == 2:  # noqa: PLR2004 a matrix
                found.add(int(entry["shape"][1]))
    return sorted(found)


def _failure(error: EngineDied, job: QuantizeJob) -> Exception:
    """What a command that failed means, by what it wrote last."""
    text = "\n".join(error.log_tail)
    if "No space left on device" in text or f"os error {errno.ENOSPC}" in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "out of memory" in text.lower():
        return OutOfMemory(f"quantising {job.model.name} by {job.scheme}: {_last(error)}", engine=NAME)
    return Failure(f"{PROGRAM} quantize failed with {job.model.name}: {_last(error)}", engine=NAME)


def _last(error: EngineDied) -> str:
    """The line that says most: of an error, else the last."""
    lines = [line.strip() for line in error.log_tail if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")
