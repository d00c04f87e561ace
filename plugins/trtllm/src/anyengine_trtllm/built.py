"""The backend that runs built engines: a folder is loaded if it holds one, else built and saved there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine_trtllm.library import Library
    from anyengine_trtllm.options import Options

__all__ = ["bring_up", "holds_engine"]

#: What a build decides; a folder that holds an engine was built with its own.
_OF_THE_BUILD = ("build_config", "quant_config", "dtype")


def holds_engine(folder: Path) -> bool:
    """Whether a folder has a built engine: its configuration, and a file for each device."""
    return (folder / "config.json").is_file() and any(folder.glob("rank*.engine"))


def bring_up(library: Library, options: Options, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load, or build, save and load.

    Args:
        library: TensorRT-LLM's classes.
        options: where the engine is, or goes.
        arguments: what it would be built with.

    Returns:
        The ``LLM``, and the arguments that it was made with.

    Raises:
        InvalidConfig: the folder has something else in it.
    """
    folder = options.engine_dir
    if folder is None:
        return library.llm(**arguments), arguments
    if holds_engine(folder):
        loaded = {name: value for name, value in arguments.items() if name not in _OF_THE_BUILD}
        return library.llm(**loaded | {"model": str(folder)}), arguments
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
    return llm, arguments
