"""The backend that runs built engines: a folder is loaded if it holds one, else built and saved there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig

from anyengine_trtllm.capabilities import QUANTIZATION

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.config import EngineConfig

    from anyengine_trtllm.library import Library
    from anyengine_trtllm.options import Options

__all__ = ["bring_up", "check_built", "holds_engine"]

#: What a build decides; a folder that holds an engine was built with its own.
_OF_THE_BUILD = ("build_config", "quant_config", "dtype")


def holds_engine(folder: Path) -> bool:
    """Whether a folder has a built engine: its configuration, and a file for each device."""
    return (folder / "config.json").is_file() and any(folder.glob("rank*.engine"))


def bring_up(
    library: Library, config: EngineConfig, options: Options, arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """Load, or build, save and load.

    Args:
        library: TensorRT-LLM's classes.
        config: what is asked for, which an engine that was built already must be built for.
        options: where the engine is, or goes.
        arguments: what it would be built with.

    Returns:
        The ``LLM``, the arguments that it was made with, and the limits of an engine that was built already.

    Raises:
        InvalidConfig: the folder has something else in it, or an engine that was built for something else.
    """
    folder = options.engine_dir
    if folder is None:
        return library.llm(**arguments), arguments, {}
    if holds_engine(folder):
        limits = check_built(config, folder)
        loaded = {name: value for name, value in arguments.items() if name not in _OF_THE_BUILD}
        return library.llm(**loaded | {"model": str(folder)}), arguments, limits
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidConfig(
            f"native.engine_dir: {folder} is there already, and holds no built engine (config.json and rank*.engine)",
            field="native.engine_dir",
        )
    llm = library.llm(**arguments)
    try:
        llm.save(str(folder))
    except BaseException:
        llm.shutdown()
        raise
    return llm, arguments, {}


def check_built(config: EngineConfig, folder: Path) -> dict[str, int]:
    """Hold what is asked for against what an engine was built for: TensorRT-LLM goes by the latter, and says nothing.

    Args:
        config: what is asked for.
        folder: of the engine.

    Returns:
        Its ``max_seq_len`` and ``max_num_tokens``, as far as it says.

    Raises:
        InvalidConfig: names the field that it was not built for.
    """
    try:
        said: Any = json.loads((folder / "config.json").read_bytes())
        build: dict[str, Any] = dict(said["build_config"])
        plugins: dict[str, Any] = dict(build.get("plugin_config") or {})
        model: dict[str, Any] = dict(said.get("pretrained_config") or {})
        mapping: dict[str, Any] = dict(model.get("mapping") or {})
        quantization: dict[str, Any] = dict(model.get("quantization") or {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidConfig(
            f"native.engine_dir: {folder}/config.json is not that of a built engine: {type(error).__name__}: {error}",
            field="native.engine_dir",
        ) from error
    wanted, scheduling = config.speculative, config.scheduling
    drafted = None if wanted is None else wanted.num_speculative_tokens
    algorithm = None if config.quantization is None else QUANTIZATION[config.quantization]
    length = build.get("max_seq_len")
    _built_for("scheduling.max_num_batched_tokens", scheduling.max_num_batched_tokens, build.get("max_num_tokens"))
    _built_for("scheduling.max_num_seqs", scheduling.max_num_seqs, build.get("max_batch_size"))
    _built_for("dtype", None if config.dtype == "auto" else config.dtype, model.get("dtype"))
    _built_for("quantization", algorithm, (quantization.get("quant_algo") or "NO_QUANT") if quantization else None)
    # One device is TensorRT-LLM's own default, and taken for as many as there must be.
    _built_for("parallel.tensor", config.parallel.tensor, mapping.get("tp_size"))
    _built_for("parallel.pipeline", config.parallel.pipeline, mapping.get("pp_size"))
    if length is not None and config.max_model_len is not None and config.max_model_len > length:
        _built_for("max_model_len", config.max_model_len, length)
    if drafted is not None and drafted > build.get("max_draft_len", drafted):
        _built_for("speculative.num_speculative_tokens", drafted, build["max_draft_len"])
    if config.lora is not None and "lora_plugin" in plugins and not plugins["lora_plugin"]:
        _built_for("lora", "adapters", "none")
    return {name: int(build[name]) for name in ("max_seq_len", "max_num_tokens") if build.get(name) is not None}


def _built_for(field: str, asked: object, built: object) -> None:
    """Refuse what an engine was not built for; None is not asked for, or not said."""
    if asked is not None and built is not None and asked != built:
        raise InvalidConfig(
            f"{field}: the engine in native.engine_dir was built for {built}, not for {asked}; leave it out, or have "
            "another built in another folder",
            field=field,
        )
