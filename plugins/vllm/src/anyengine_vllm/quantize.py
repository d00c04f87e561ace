"""Quantising with vLLM's toolchain, ``llmcompressor``: which scheme is which recipe, and running it.

The toolchain pins packages that vLLM pins otherwise, so it has an environment of its own (variant ``compressor``), in
which vLLM itself is not. Names, presets and arguments are those of llmcompressor 0.14 (``entrypoints/oneshot.py``,
``modifiers/``) and compressed-tensors 0.19 (``quantization/quant_scheme.py``).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anyengine.backend import QuantizeReport
from anyengine.backend.quantizing import Cancelled, group_size, load_model, save_checkpoint, tool_versions
from anyengine.errors import OutOfMemory, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine.backend import QuantizeJob

__all__ = ["CALIBRATED", "SCHEMES", "installed", "quantize", "recipe_of"]

NAME = "vllm"
CALIBRATED = frozenset({"fp8-static", "int4-awq", "int4-gptq", "int8-w8a8", "kv-fp8", "nvfp4"})
SCHEMES = CALIBRATED | {"fp8-dynamic", "int8-w8a16"}
#: Those that vLLM's kernels have; the largest that divides the inputs of every matrix is taken.
_GROUP_SIZES = (128, 64, 32)
_SMOOTHING = 0.8
_MODULES: Mapping[str, str] = {
    "AWQModifier": "llmcompressor.modifiers.transform.awq",
    "GPTQModifier": "llmcompressor.modifiers.gptq",
    "QuantizationModifier": "llmcompressor.modifiers.quantization",
    "SmoothQuantModifier": "llmcompressor.modifiers.transform.smoothquant",
}
_TOOLS = ("llmcompressor", "compressed-tensors", "torch", "transformers")
_STEPS = 3


def installed() -> bool:
    """Whether the toolchain is in this interpreter; imports nothing of it."""
    return find_spec("llmcompressor") is not None


def recipe_of(scheme: str, inputs: Sequence[int]) -> list[dict[str, Any]]:
    """The modifiers of a scheme, each its class's name and its arguments.

    Args:
        scheme: one of :data:`SCHEMES`.
        inputs: of the matrices that are to be quantised.

    Raises:
        UnsupportedParameter: no group size fits them.
    """
    linear = {"targets": ["Linear"], "ignore": ["lm_head"]}
    if scheme in _PRESETS:
        return [{"modifier": "QuantizationModifier", **linear, "scheme": _PRESETS[scheme]}]
    if scheme == "int8-w8a8":
        return [
            {"modifier": "SmoothQuantModifier", "smoothing_strength": _SMOOTHING},
            {"modifier": "GPTQModifier", **linear, "scheme": "W8A8"},
        ]
    if scheme == "kv-fp8":
        cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
        return [{"modifier": "QuantizationModifier", "kv_cache_scheme": cache}]
    if scheme == "int8-w8a16":  # the preset of that name has groups, which gain nothing with 8 bits
        weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
        rows = {"group_0": {"targets": ["Linear"], "weights": weights}}
        return [{"modifier": "QuantizationModifier", "ignore": ["lm_head"], "config_groups": rows}]
    size = group_size(scheme, inputs, _GROUP_SIZES, engine=NAME)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**weights, "symmetric": scheme != "int4-awq"}}}
    if scheme == "int4-gptq":
        return [{"modifier": "GPTQModifier", "ignore": ["lm_head"], "config_groups": groups}]
    return [
        {"modifier": "AWQModifier", "duo_scaling": "both"},
        {"modifier": "QuantizationModifier", "ignore": ["lm_head"], "config_groups": groups},
    ]


#: Scheme → the preset of compressed-tensors that it is.
_PRESETS: Mapping[str, str] = {
    "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-static": "FP8",
    "nvfp4": "NVFP4",
}


def quantize(job: QuantizeJob) -> QuantizeReport:
    """Run the toolchain; not for an event loop.

    Raises:
        UnsupportedParameter: transformers or the toolchain does not know this kind of model.
        OutOfMemory: memory does not suffice.
        OSError: the disk is full.
    """
    torch: Any = import_module("torch")  # heavy, and not everywhere
    if job.scheme == "int4-awq" and not torch.accelerator.is_available():
        raise UnsupportedParameter(
            "scheme: llmcompressor's AWQ needs a GPU, and none is here; it has int4-gptq without",
            engine=NAME,
            field="scheme",
            supported=SCHEMES - {"int4-awq"},
        )
    torch.manual_seed(job.seed)
    model = load_model(job, engine=NAME)
    job.progress(1, _STEPS)
    inputs = [part.in_features for name, part in model.named_modules() if _is_quantised(torch, name, part)]
    recipe = recipe_of(job.scheme, inputs)
    try:
        _run(model, recipe, job)
        job.progress(2, _STEPS)
        save_checkpoint(lambda: model.save_pretrained(job.output, save_compressed=True), job.model.path, job.output)
        (job.output / "recipe.yaml").unlink(missing_ok=True)  # it is in the manifest
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"quantising {job.model.name} by {job.scheme}: {error}", engine=NAME) from error
    job.progress(_STEPS, _STEPS)
    return QuantizeReport(recipe={"llmcompressor": recipe}, tools=tool_versions(_TOOLS))


def _is_quantised(torch: Any, name: str, part: object) -> bool:
    return isinstance(part, torch.nn.Linear) and name != "lm_head"


def _run(model: Any, recipe: Sequence[Mapping[str, Any]], job: QuantizeJob) -> None:
    modifiers = [
        getattr(import_module(_MODULES[one["modifier"]]), one["modifier"])(
            **{name: value for name, value in one.items() if name != "modifier"}
        )
        for one in recipe
    ]
    data: dict[str, Any] = {}
    if job.calibration is not None:
        data = {"dataset": _loader(job, job.calibration), "num_calibration_samples": len(job.calibration)}
    import_module("llmcompressor").oneshot(model=model, recipe=modifiers, **data)


def _loader(job: QuantizeJob, sequences: Sequence[Sequence[int]]) -> Any:
    """Sequences one by one, in the order that was drawn; where the toolchain asks for one it can be stopped."""
    torch: Any = import_module("torch")
    loader: Any = import_module("torch.utils.data").DataLoader

    def batch(items: Sequence[Sequence[int]]) -> dict[str, Any]:
        if job.cancelled():
            raise Cancelled
        ids = torch.tensor([list(item) for item in items])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return loader(sequences, batch_size=1, shuffle=False, collate_fn=batch)
