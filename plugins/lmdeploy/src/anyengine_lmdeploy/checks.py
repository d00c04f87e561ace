"""What a configuration may not ask of LMDeploy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend.dtypes import own_dtype
from anyengine.backend.model_config import whole_model
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.quantization import read_stored, why_not

from anyengine_lmdeploy.capabilities import fits_fp8
from anyengine_lmdeploy.checkpoints import CHECKPOINTS, not_as_stored, vocab_size
from anyengine_lmdeploy.options import needs_pytorch

if TYPE_CHECKING:
    from collections.abc import Collection

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_lmdeploy.options import BackendName

__all__ = ["KV_CACHE_DTYPES", "check_config", "unsupported", "why_not_on"]

#: Element types of the cache → LMDeploy's ``quant_policy``, by backend.
KV_CACHE_DTYPES: dict[BackendName, dict[str, int]] = {
    "turbomind": {"auto": 0, "int4": 4, "int8": 8},
    "pytorch": {"auto": 0, "int4": 4, "int8": 8, "fp8": 16, "fp8_e4m3": 16, "fp8_e5m2": 17},
}

#: Compute capability from which LMDeploy quantises to fp8 while loading.
_FP8_SINCE = (9, 0)

#: And from which its kernels, in Triton, have e4m3; they have e5m2 wherever they run.
_E4M3_SINCE = (8, 9)
_E4M3 = frozenset({"fp8", "fp8_e4m3"})


def unsupported(name: str, message: str, supported: Collection[str] = ()) -> UnsupportedParameter:
    """The refusal of a field, its name first."""
    return UnsupportedParameter(f"{name}: {message}", field=name, supported=supported)


def why_not_on(backend: BackendName, model: ModelFiles) -> str | None:
    """Why a backend cannot load a checkpoint, or the one of its drafts; None if nothing speaks against it."""
    for files in (model, *([model.draft] if model.draft else ())):
        reason = why_not(CHECKPOINTS[backend], files.path, files.config) or not_as_stored(backend, files.config)
        if reason is not None:
            return f"it cannot run {files.path.name}: {reason}"
    return None


def check_config(config: EngineConfig, model: ModelFiles, backend: BackendName, torch: Any) -> None:
    """Refuse what the backend does not have, and what contradicts itself.

    Args:
        config: within the declared capabilities.
        model: the checkpoint.
        backend: the one that will run it.
        torch: to ask for the devices.

    Raises:
        UnsupportedParameter, InvalidConfig: names the field.
        ModelNotFound: the checkpoint does not say what has to be known of it.
    """
    field = needs_pytorch(config)
    if backend == "turbomind" and field is not None:
        raise unsupported(field, "LMDeploy has it on its pytorch backend only; give native.backend='pytorch'")
    _check_checkpoint(model, backend)
    _check_cache(config, backend, torch)
    if model.tokenizer_path != model.path:
        raise unsupported("tokenizer", "LMDeploy reads the tokenizer in the model's own folder and takes no other")
    wanted = config.parallel.tensor
    if config.devices is not None and len(config.devices) < wanted:
        raise InvalidConfig(
            f"devices: names {len(config.devices)} devices, and parallel.tensor needs {wanted}", field="devices"
        )
    if torch.cuda.device_count() < wanted:
        raise InvalidConfig(
            f"parallel.tensor: needs {wanted} devices, and {torch.cuda.device_count()} are here",
            field="parallel.tensor",
        )
    _check_quantization(config, model, torch)
    _check_dtype(config, model, backend)
    _check_speculative(config, model)
    vocab_size(model)


def _check_checkpoint(model: ModelFiles, backend: BackendName) -> None:
    """The SDK has let through what either of the two loads."""
    reason = why_not_on(backend, model)
    if reason is not None:
        other: BackendName = "pytorch" if backend == "turbomind" else "turbomind"
        hint = f"; native.backend={other!r} can" if why_not_on(other, model) is None else ""
        schemes = sorted({known.scheme for known in CHECKPOINTS[backend].formats})
        raise unsupported("model", f"on LMDeploy's {backend} backend {reason}{hint}", schemes)


def _check_cache(config: EngineConfig, backend: BackendName, torch: Any) -> None:
    kv_cache = config.kv_cache
    dtypes = KV_CACHE_DTYPES[backend]
    if kv_cache.dtype not in dtypes:
        raise unsupported("kv_cache.dtype", f"there is no {kv_cache.dtype!r} on the {backend} backend", dtypes)
    if kv_cache.dtype in _E4M3 and tuple(torch.cuda.get_device_capability()) < _E4M3_SINCE:
        raise unsupported(
            "kv_cache.dtype",
            f"LMDeploy needs a GPU of compute capability 8.9 or more for {kv_cache.dtype!r}",
            dtypes.keys() - _E4M3,
        )
    if kv_cache.gpu_memory_fraction is not None and kv_cache.capacity_tokens is not None:
        raise InvalidConfig(
            "kv_cache.capacity_tokens: it is instead of gpu_memory_fraction; give one of the two",
            field="kv_cache.capacity_tokens",
        )
    size = kv_cache.block_size
    if size is not None and (size < 16 or size & (size - 1)):  # noqa: PLR2004 LMDeploy's own bound
        raise unsupported("kv_cache.block_size", f"a power of 2 of at least 16, not {size}")


def _check_quantization(config: EngineConfig, model: ModelFiles, torch: Any) -> None:
    if config.quantization is None:
        return
    own: Any = whole_model(model.config, "quantization_config")
    if own:
        # LMDeploy would warn, and load the checkpoint as it is.
        raise unsupported("quantization", f"the checkpoint is quantised already ({own.get('quant_method')})")
    if tuple(torch.cuda.get_device_capability()) < _FP8_SINCE:
        raise unsupported("quantization", "LMDeploy needs a GPU of compute capability 9.0 or more for fp8")
    if not fits_fp8(model):
        raise unsupported(
            "quantization", "LMDeploy needs widths that are multiples of 128 for fp8, and this model has others"
        )


def _check_dtype(config: EngineConfig, model: ModelFiles, backend: BackendName) -> None:
    own, stored = own_dtype(model.config), read_stored(model.path, model.config)
    if config.dtype == "auto" and own not in {"bfloat16", "float16"}:
        raise unsupported(
            "dtype",
            f"the checkpoint is {own or 'of no stated dtype'}, which LMDeploy would turn into float16; choose one",
            {"bfloat16", "float16"},
        )
    wanted = own if config.dtype == "auto" else config.dtype
    if backend == "pytorch" and stored is not None and stored.method == "awq" and wanted == "bfloat16":
        # LMDeploy would go on in float16 (``pytorch/config.py``, _update_torch_dtype).
        hint = "; the checkpoint is in bfloat16, so ask for dtype='float16'" if own == "bfloat16" else ""
        raise unsupported(
            "dtype",
            f"LMDeploy's pytorch backend computes AWQ in float16 only{hint}",
            {"float16"} | ({"auto"} if own == "float16" else set()),
        )


def _check_speculative(config: EngineConfig, model: ModelFiles) -> None:
    wanted = config.speculative
    if wanted is None:
        return
    if wanted.method == "mtp":
        if wanted.model is not None:
            raise InvalidConfig(
                "speculative.model: the layers of method 'mtp' are part of the model itself", field="speculative.model"
            )
    elif model.draft is None:
        raise InvalidConfig(
            f"speculative.model: method {wanted.method!r} needs the proposer's checkpoint", field="speculative.model"
        )
    if config.lora is not None:
        raise unsupported("lora", "what adapters do to drafts is not known; load without speculative")
