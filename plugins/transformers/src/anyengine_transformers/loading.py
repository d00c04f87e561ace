"""From a checkpoint's folder to a :class:`~anyengine_transformers.model.CausalLM`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import AnyEngineError, InvalidConfig, ModelNotFound, UnsupportedParameter
from msgspec.structs import replace

from anyengine_transformers import errors, libraries
from anyengine_transformers.errors import NAME
from anyengine_transformers.model import CausalLM

if TYPE_CHECKING:
    from collections.abc import Generator

    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["ATTENTION", "choose_device", "choose_dtype", "context_length", "load_model", "load_settings", "narrow"]

#: What ``native={"attn_implementation": …}`` may say: those that need no further package.
ATTENTION = ("eager", "sdpa")
#: How architectures name the length of their context.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


def load_settings(config: EngineConfig, files: ModelFiles) -> Any:
    """The checkpoint's configuration, as transformers reads it.

    Raises:
        UnsupportedParameter: transformers has no causal language model of that kind.
    """
    library = libraries.transformers()
    kind = files.config.get("model_type")
    brings_code = "AutoModelForCausalLM" in (files.config.get("auto_map") or {})
    known = kind in library.CONFIG_MAPPING
    if brings_code and not config.trust_remote_code and not known:
        raise UnsupportedParameter(
            f"model: {files.name} brings Python code of its own; read it, and pass trust_remote_code=True to run it",
            engine=NAME,
            field="trust_remote_code",
        )
    if not known and not brings_code:
        raise _unsupported(files, f"transformers {library.__version__} does not know its model_type, {kind!r}")
    settings = library.AutoConfig.from_pretrained(
        files.path, trust_remote_code=config.trust_remote_code, local_files_only=True
    )
    own_code = brings_code and config.trust_remote_code
    if not own_code and type(settings) not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(files, f"transformers has no causal language model for its model_type, {kind!r}")
    return settings


def _unsupported(files: ModelFiles, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"model: {files.name} cannot be run: {reason}", engine=NAME, field="model")


def load_model(config: EngineConfig, files: ModelFiles, settings: Any, device: str, dtype: str) -> CausalLM:
    """Read the weights, all of them, and try the model out.

    Raises:
        ModelNotFound: weights are missing; transformers would go on with random ones.
        UnsupportedParameter: the architecture lacks the attention that ``native`` asks for, or is not causal.
    """
    torch, library = libraries.torch(), libraries.transformers()
    options: dict[str, Any] = {
        "config": settings,
        "dtype": getattr(torch, dtype),
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported, and refused below, by name
    }
    if device != "cpu":
        options["device_map"] = {"": device}  # never through the host's memory
    asked = config.native.get("attn_implementation")
    with _no_progress_bars(), _quantized(files):
        module, report = _first_supported(library.AutoModelForCausalLM, files, options, asked)
    _check_complete(files, report)
    return CausalLM(module.eval(), device, dtype)


def _first_supported(loader: Any, files: ModelFiles, options: dict[str, Any], asked: str | None) -> tuple[Any, Any]:
    """With the attention that was asked for, else with torch's fused one, else the plain one.

    Named each time: a checkpoint's own wish could be a kernel that transformers would fetch from the hub.
    """
    try:
        return loader.from_pretrained(files.path, **options, attn_implementation=asked or "sdpa")
    except ValueError as error:
        # Raised before any weight is read, by architectures that have only the plain one.
        if "does not support an attention implementation" not in str(error):
            raise
        if asked is not None:
            raise UnsupportedParameter(
                f"native.attn_implementation: {files.config.get('model_type')} has no {asked!r}; it has 'eager'",
                engine=NAME,
                field="native.attn_implementation",
                supported=("eager",),
            ) from error
    return loader.from_pretrained(files.path, **options, attn_implementation="eager")


def _check_complete(files: ModelFiles, report: dict[str, Any]) -> None:
    lacking = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if lacking:
        raise ModelNotFound(
            f"{files.path} lacks weights that its config.json calls for, or has them in other shapes: "
            f"{', '.join(lacking[:3])}{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}",  # noqa: PLR2004
            engine=NAME,
            field="model",
        )


def _scheme(files: ModelFiles) -> str | None:
    """How the checkpoint's own weights are quantized; None if they are not."""
    described = files.config.get("quantization_config")
    return str(cast("dict[str, Any]", described).get("quant_method")) if isinstance(described, dict) else None


@contextmanager
def _quantized(files: ModelFiles) -> Generator[None]:
    """What fails in a checkpoint that was quantized is most often a package or a device that its scheme needs."""
    scheme = _scheme(files)
    try:
        yield
    except AnyEngineError:
        raise
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if scheme is None or errors.is_memory(error):
            raise
        reason = f"its quantization, {scheme}, does not load here: {errors.words(error)}"
        raise _unsupported(files, reason) from error


@contextmanager
def _no_progress_bars() -> Generator[None]:
    """Keep transformers from drawing on the terminal, which is the application's."""
    log = libraries.transformers().utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def choose_device(device: str) -> str:
    """Where to compute; ``auto`` is the GPU if there is one.

    Raises:
        UnsupportedParameter: there is no GPU here.
    """
    has_gpu = bool(libraries.torch().cuda.is_available())
    if device == "cuda" and not has_gpu:
        raise UnsupportedParameter(
            "device: torch finds no CUDA device here; it can use cpu", engine=NAME, field="device", supported=("cpu",)
        )
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device


def choose_dtype(dtype: str) -> str:
    """Of the weights in memory; ``auto`` is float32, whatever the checkpoint's: other engines are compared with it.

    Raises:
        UnsupportedParameter: float32 is not what it says in this process.
    """
    chosen = "float32" if dtype == "auto" else dtype
    precision = libraries.torch().get_float32_matmul_precision()
    if chosen == "float32" and precision != "highest":
        raise UnsupportedParameter(
            f"dtype: this process has torch multiply float32 in less ({precision!r}); run the engine in a worker, or "
            "call torch.set_float32_matmul_precision('highest')",
            engine=NAME,
            field="dtype",
        )
    return chosen


def context_length(config: EngineConfig, settings: Any) -> int:
    """The context in tokens: as asked, or the model's.

    Raises:
        InvalidConfig: more than the model has, or neither says.
    """
    text = settings.get_text_config(decoder=True)
    own = next((value for name in _CONTEXT if isinstance(value := getattr(text, name, None), int) and value > 0), None)
    wanted = config.max_model_len
    if wanted is None and own is None:
        raise InvalidConfig(
            "max_model_len: the checkpoint does not say how long its context is; name it",
            engine=NAME,
            field="max_model_len",
        )
    if wanted is not None and own is not None and wanted > own:
        raise InvalidConfig(
            f"max_model_len: {wanted} is more than the model's {own}", engine=NAME, field="max_model_len"
        )
    return wanted or own or 0


def narrow(capabilities: Capabilities, config: EngineConfig, settings: Any, device: str) -> Capabilities:
    """What is left of the declared capabilities with this model, on this device.

    Raises:
        UnsupportedParameter: a promise was asked for that cannot be kept.
    """
    kept = set(capabilities.determinism)
    # Frequencies of the rope type `dynamic` stay stretched after a long text, for shorter ones too
    # (transformers.modeling_rope_utils.dynamic_rope_update).
    if "'dynamic'" in repr(getattr(settings.get_text_config(decoder=True), "rope_parameters", None)):
        kept.discard("batch-invariant")
    if device != "cpu":
        # Sums over experts are added up in any order there (index_add), and nobody has looked yet.
        kept.clear()
    if config.determinism not in {"none", *kept}:
        raise UnsupportedParameter(
            f"determinism: {config.determinism!r} cannot be kept with this model on {device}; "
            f"what can is {', '.join(sorted({'none', *kept}))}",
            engine=NAME,
            field="determinism",
            supported={"none", *kept},
        )
    return replace(
        capabilities,
        determinism=frozenset(kept),
        # With a seed of its own the engine draws those of requests that come without; else the SDK does.
        unseeded=capabilities.unseeded if config.seed is None else "varies",
    )
