"""Quantising with NVIDIA's ModelOpt, which TensorRT-LLM brings: which scheme is which preset, and running it.

Presets, signatures and what is written are those of 0.37, which TensorRT-LLM 1.2 pins; later releases describe presets
in another way. SmoothQuant is left out: the backend in PyTorch has no kernel for what ModelOpt writes of it.
"""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anyengine.backend import QuantizeReport
from anyengine.backend.quantizing import Cancelled, group_size, load_model, save_checkpoint, tool_versions, unfit
from anyengine.backend.releases import installed_version, release
from anyengine.errors import OutOfMemory, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyengine.backend import QuantizeJob

__all__ = ["PRESETS", "SCHEMES", "installed", "quantize"]

NAME = "trtllm"
#: Scheme → ModelOpt's preset.
PRESETS: Mapping[str, str] = {
    "fp8-static": "FP8_DEFAULT_CFG",
    "int4-awq": "INT4_AWQ_CFG",
    "kv-fp8": "FP8_KV_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
#: Every one is fitted to text: each has scales of activations, or searches by them.
SCHEMES = frozenset(PRESETS)
_RELEASE = (0, 37)
#: Those that TensorRT-LLM's kernels have; the largest that divides the inputs of every matrix is taken.
_GROUP_SIZES: Mapping[str, Sequence[int]] = {"int4-awq": (128, 64), "nvfp4": (16,)}
#: How often a preset's algorithm asks for all of the text; one where nothing is said.
_PASSES = {"int4-awq": 2}
_TOOLS = ("nvidia-modelopt", "tensorrt-llm", "torch", "transformers")


def installed() -> bool:
    """Whether the toolchain is in this interpreter; imports nothing of it."""
    found = installed_version("nvidia-modelopt")
    return found is not None and find_spec("modelopt") is not None and release(found)[:2] == _RELEASE


def quantize(job: QuantizeJob) -> QuantizeReport:
    """Run the toolchain; not for an event loop.

    Raises:
        UnsupportedParameter: transformers or the toolchain does not know this kind of model, or no group size fits.
        OutOfMemory: memory does not suffice.
        OSError: the disk is full.
    """
    torch: Any = import_module("torch")  # heavy, and not everywhere
    gpu = bool(torch.cuda.is_available())
    if job.scheme == "nvfp4" and not gpu:
        raise UnsupportedParameter(
            "scheme: ModelOpt packs nvfp4 on a GPU, and none is here",
            engine=NAME,
            field="scheme",
            supported=SCHEMES - {"nvfp4"},
        )
    torch.manual_seed(job.seed)
    try:
        return _made(job, torch, load_model(job, engine=NAME), "cuda" if gpu else "cpu")
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"quantising {job.model.name} by {job.scheme}: {error}", engine=NAME) from error


def _made(job: QuantizeJob, torch: Any, model: Any, device: str) -> QuantizeReport:
    toolchain: Any = import_module("modelopt.torch.quantization")
    preset = PRESETS[job.scheme]
    config = copy.deepcopy(getattr(toolchain, preset))
    recipe: dict[str, Any] = {"preset": preset}
    if job.scheme in _GROUP_SIZES:
        size = group_size(job.scheme, _inputs(torch, model), _GROUP_SIZES[job.scheme], engine=NAME)
        config["quant_cfg"]["*weight_quantizer"]["block_sizes"][-1] = recipe["group_size"] = size
    sequences = job.calibration or ()
    total = len(sequences) * _PASSES.get(job.scheme, 1) + 2
    done = 0

    def step() -> None:
        nonlocal done
        if job.cancelled():
            raise Cancelled
        done = min(done + 1, total)
        job.progress(done, total)

    step()
    model = toolchain.quantize(model.to(device), config, _forward_loop(torch, sequences, device, step))
    export: Any = import_module("modelopt.torch.export").export_hf_checkpoint
    with torch.inference_mode():
        save_checkpoint(lambda: export(model, export_dir=job.output), job.model.path, job.output)
    from anyengine.quantization import read_stored  # noqa: PLC0415 who only describes the engine does without

    stored = read_stored(job.output, {})
    if stored is None or stored.schemes != (job.scheme,):  # it passes over modules that it does not know
        raise unfit(job, f"ModelOpt finds too little in it that {job.scheme} is for, and made {stored}", engine=NAME)
    job.progress(total, total)
    return QuantizeReport(recipe={"modelopt": recipe}, tools=tool_versions(_TOOLS))


def _inputs(torch: Any, model: Any) -> list[int]:
    """Of the matrices that are quantised."""
    return [
        part.in_features
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and "lm_head" not in name
    ]


def _forward_loop(
    torch: Any, sequences: Sequence[Sequence[int]], device: str, step: Callable[[], None]
) -> Callable[[Any], None]:
    """Sequences one by one, in the order that was drawn; between two it can be stopped."""

    def loop(model: Any) -> None:
        with torch.inference_mode():
            for sequence in sequences:
                step()
                model(input_ids=torch.tensor([list(sequence)], device=device), use_cache=False)

    return loop
