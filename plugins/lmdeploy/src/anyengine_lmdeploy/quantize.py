"""Quantising with LMDeploy's own toolchain, ``lmdeploy.lite``: AWQ, and SmoothQuant to int8 or fp8.

Its commands ``auto_awq`` and ``smooth_quant`` take no text but that of a few named data sets, which they fetch. So
their parts are called one by one, in their order and with their defaults: ``CalibrationContext`` on the job's own
sequences, ``smooth_layers``, then ``quant_weights`` or ``QLinear``. Names and arguments are those of 0.18.0.

Its ``auto_gptq`` is left out: it needs auto-gptq, whose last release is of March 2024, before any transformers that
LMDeploy 0.18 takes, and which was archived a year later.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.backend import QuantizeReport
from anyengine.backend.quantizing import Cancelled, group_size, load_model, save_checkpoint, tool_versions, unfit
from anyengine.errors import OutOfMemory, UnsupportedParameter

from anyengine_lmdeploy import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyengine.backend import QuantizeJob

__all__ = ["SCHEMES", "installed", "quantize"]

NAME = "lmdeploy"
#: Every one is fitted to text: it smooths by how large activations become.
SCHEMES = frozenset({"fp8-dynamic", "int4-awq", "int8-w8a8"})
#: Those that LMDeploy's kernels have; TurboMind has 128 alone.
_GROUP_SIZES = (128, 64, 32)
_BITS = 4
#: Outputs whose weights share a word.
_PACKED = 32 // _BITS
#: Of LMDeploy's ``smooth_quant``.
_ELEMENTS: Mapping[str, str] = {"fp8-dynamic": "float8_e4m3fn", "int8-w8a8": "int8"}
_TOOLS = ("lmdeploy", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """What lite knows of a kind of model.

    Attributes:
        layer: class of its decoder layers.
        norm: class of its norms.
        norms: norm of a layer → the matrices that read what it gives.
        matrices: matrix of a layer → those that read what it gives.
    """

    layer: str
    norm: str
    norms: Mapping[str, Sequence[str]]
    matrices: Mapping[str, Sequence[str]]


def installed() -> bool:
    """Whether the toolchain is in this interpreter; imports nothing of it."""
    if versions.unavailable() is not None:
        return False
    found = find_spec("lmdeploy")
    return found is not None and any(
        (Path(place) / "lite").is_dir() for place in found.submodule_search_locations or ()
    )


def quantize(job: QuantizeJob) -> QuantizeReport:
    """Run the toolchain; not for an event loop.

    Raises:
        UnsupportedParameter: transformers or the toolchain does not know this kind of model.
        OutOfMemory: memory does not suffice.
        OSError: the disk is full.
    """
    torch: Any = import_module("torch")  # heavy, and not everywhere
    try:
        return _Work(job, torch, load_model(job, engine=NAME)).done()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"quantising {job.model.name} by {job.scheme}: {error}", engine=NAME) from error
    except AssertionError as error:  # widths were looked at; what lite asserts beside them is that numbers are finite
        raise unfit(job, f"lmdeploy.lite comes to values that are no numbers by {job.scheme}", engine=NAME) from error


class _Work:
    """One job, layer by layer; between two it can be stopped."""

    def __init__(self, job: QuantizeJob, torch: Any, model: Any) -> None:
        self._job = job
        self._torch = torch
        self._model = model
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._structure = self._known_structure()
        collect: Any = import_module("lmdeploy.lite.utils").collect_target_modules
        self._layers: dict[str, Any] = collect(model, self._structure.layer)
        self._linear: dict[str, dict[str, Any]] = {
            name: collect(layer, torch.nn.Linear, prefix=name) for name, layer in self._layers.items()
        }
        self._check_fit()
        self._group = self._chosen_group() if job.scheme == "int4-awq" else -1
        self._steps = 0
        self._total = 3 * len(self._layers) + 2

    def done(self) -> QuantizeReport:
        """Do all of it."""
        self._step()
        largest = self._calibrated()
        awq: Any = import_module("lmdeploy.lite.quantization.awq")
        structure = self._structure
        for name, layer in self._layers.items():
            awq.smooth_layers({name: layer}, structure.matrices, structure.norms, largest, self._group, self._device)
            self._step()
        rounded: Callable[[str], None] = self._to_words if self._job.scheme == "int4-awq" else self._to_bytes
        for name in self._layers:
            rounded(name)
            self._step()
        config = self._config()
        self._model.config.update({"quantization_config": config})
        save_checkpoint(lambda: self._model.save_pretrained(self._job.output), self._job.model.path, self._job.output)
        self._step()
        recipe = {"calibration": "CalibrationContext", "smoothing": "smooth_layers", "quantization_config": config}
        return QuantizeReport(recipe={"lmdeploy.lite": recipe}, tools=tool_versions(_TOOLS))

    def _step(self, *_: object) -> None:
        self._stop_if_cancelled()
        self._steps += 1
        self._job.progress(self._steps, self._total)

    def _stop_if_cancelled(self, *_: object) -> None:
        if self._job.cancelled():
            raise Cancelled

    # -- what is refused --------------------------------------------------------------------------

    def _known_structure(self) -> _Structure:
        known: Any = import_module("lmdeploy.lite.apis.calibrate")
        awq: Any = import_module("lmdeploy.lite.quantization.awq")
        kind = type(self._model).__name__
        layer = known.LAYER_TYPE_MAP.get(kind)
        tables = awq.NORM_FCS_MAP.keys() & awq.FC_FCS_MAP.keys()
        if layer not in tables:
            fit = sorted(name for name, one in known.LAYER_TYPE_MAP.items() if one in tables)
            raise unfit(self._job, f"lmdeploy.lite does not know a {kind}; it knows {', '.join(fit)}", engine=NAME)
        return _Structure(
            layer=layer,
            norm=known.NORM_TYPE_MAP[kind],
            norms=awq.NORM_FCS_MAP[layer],
            matrices=awq.FC_FCS_MAP[layer],
        )

    def _check_fit(self) -> None:
        """Lite's tables were written for one shape of a layer; mixtures of experts have another in transformers 5."""
        tables = (self._structure.norms, self._structure.matrices)
        named = {name for table in tables for first, then in table.items() for name in (first, *then)}
        for layer_name, layer in self._layers.items():
            missing = named - {name for name, _ in layer.named_modules()}
            if missing:
                raise unfit(
                    self._job, f"{layer_name} has no {', '.join(sorted(missing))}, which lite looks for", engine=NAME
                )

    def _chosen_group(self) -> int:
        matrices = [matrix for layer in self._linear.values() for matrix in layer.values()]
        outputs = sorted({matrix.out_features for matrix in matrices if matrix.out_features % _PACKED})
        if outputs:
            raise UnsupportedParameter(
                f"scheme: int4-awq needs matrices of a multiple of {_PACKED} outputs, and here are some of "
                f"{', '.join(map(str, outputs))}",
                engine=NAME,
                field="scheme",
            )
        return group_size("int4-awq", [matrix.in_features for matrix in matrices], _GROUP_SIZES, engine=NAME)

    # -- the steps --------------------------------------------------------------------------------

    def _calibrated(self) -> Mapping[str, Any]:
        """Name of a matrix → the largest absolute value of each of its inputs, over the job's sequences."""
        lite: Any = import_module("lmdeploy.lite.quantization")
        torch, model = self._torch, self._model
        lite.ActivationObserver.instances().clear()  # of the process: it would hold another job's
        context = lite.CalibrationContext(
            model, None, layer_type=self._structure.layer, norm_type=self._structure.norm, device=self._device
        )
        for part in model.model.children():  # layers come to the device one by one
            if not isinstance(part, torch.nn.ModuleList):
                part.to(self._device)
        # With a cache, a sequence of the batch would see those before it: lite passes them one by one.
        use_cache, model.config.use_cache = model.config.use_cache, False
        hooks = [layer.register_forward_pre_hook(self._stop_if_cancelled) for layer in self._layers.values()]
        hooks += [layer.register_forward_hook(self._step) for layer in self._layers.values()]
        try:
            with context:
                context.calibrate(torch.tensor([list(ids) for ids in self._job.calibration or ()]))
        finally:
            model.config.use_cache = use_cache
            for hook in hooks:
                hook.remove()
            model.to("cpu")
        return context.collect_inputs_stats()["absmax"]

    def _to_words(self, layer: str) -> None:
        """Weights of 4 bits, eight in a word, in the layout that AWQ calls ``gemm``."""
        quant_weights: Any = import_module("lmdeploy.lite.quantization.awq").quant_weights
        quant_weights(
            self._model,
            self._linear.pop(layer),
            bits=_BITS,
            symmetry=False,
            arch=type(self._model).__name__,
            group_size=self._group,
            device=self._device,
        )

    def _to_bytes(self, layer: str) -> None:
        """Weights of 8 bits with a scale for each output."""
        linear: Any = import_module("lmdeploy.pytorch.models").QLinear
        element = getattr(self._torch, _ELEMENTS[self._job.scheme])
        for name, matrix in self._linear.pop(layer).items():  # what is done holds no memory of the device
            made = linear.from_float(matrix.to(self._device), quant_dtype=element).to("cpu")
            if not float(made.scale.min()) > 0:  # lite divides by it, and fp8 would be no number
                raise unfit(self._job, f"{name} has outputs whose weights are all 0, or no numbers", engine=NAME)
            parent, _, own = name.rpartition(".")
            setattr(self._model.get_submodule(parent), own, made)

    def _config(self) -> dict[str, Any]:
        """As lite's commands write it."""
        if self._job.scheme == "int4-awq":
            return {
                "quant_method": "awq",
                "version": "gemm",
                "bits": _BITS,
                "group_size": self._group,
                "zero_point": True,
            }
        return {"quant_method": "smooth_quant", "quant_dtype": _ELEMENTS[self._job.scheme]}
