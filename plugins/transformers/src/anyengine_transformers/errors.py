"""What torch and transformers raise, as errors of anyengine. Every exception of theirs goes through here."""

from __future__ import annotations

import traceback

from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineStartupError,
    ModelNotFound,
    OutOfMemory,
    PluginError,
    UnsupportedParameter,
)

from anyengine_transformers import libraries

__all__ = ["NAME", "at_load", "death", "in_request", "is_fatal", "is_memory", "words"]

NAME = "transformers"

#: How torch words it when the host has no memory left; the type is a bare RuntimeError.
_HOST_MEMORY = ("can't allocate memory", "not enough memory")


def at_load(error: BaseException, model: str) -> AnyEngineError:
    """The error of a load, most specific first; the original is its cause."""
    if isinstance(error, AnyEngineError):
        error.engine = error.engine or NAME
        return error
    mapped = _at_load(error, model)
    mapped.__cause__ = error
    _drop_tensors(error)
    return mapped


def _at_load(error: BaseException, model: str) -> AnyEngineError:
    said = words(error)
    if is_memory(error):
        return OutOfMemory(f"there is not enough memory for {model}: {said}", engine=NAME)
    if isinstance(error, ImportError):
        return EngineStartupError(f"{model} needs a package that is not here: {said}", engine=NAME)
    if isinstance(error, NotImplementedError):
        return UnsupportedParameter(
            f"dtype: torch cannot compute {model} in this type on this device: {said}", engine=NAME, field="dtype"
        )
    # Of safetensors, whose error type says nothing else; and of reading files.
    if type(error).__name__ == "SafetensorError" or isinstance(error, OSError):
        return ModelNotFound(f"{model} cannot be read: {said}", engine=NAME, field="model")
    return EngineStartupError(f"{model} cannot be loaded: {said}", engine=NAME)


def in_request(error: BaseException) -> AnyEngineError:
    """The error of one request, which harms no other; the original is its cause."""
    if isinstance(error, AnyEngineError):
        error.engine = error.engine or NAME
        return error
    if is_memory(error):
        mapped: AnyEngineError = OutOfMemory(f"there is no memory left for this request: {words(error)}", engine=NAME)
    else:
        mapped = PluginError(f"{NAME} failed on this request: {words(error)}", engine=NAME)
    mapped.__cause__ = error
    _drop_tensors(error)
    return mapped


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost with it: after an illegal access, say, every later call of CUDA fails too."""
    lost = getattr(libraries.torch(), "AcceleratorError", None)
    return lost is not None and isinstance(error, lost) and not is_memory(error)


def death(cause: BaseException | None) -> EngineDied:
    """What there is to say once the engine is gone; a new one each time, since each reader adds its own traceback."""
    error = EngineDied(f"{NAME} failed and cannot go on: {'' if cause is None else words(cause)}", engine=NAME)
    error.__cause__ = cause
    return error


def is_memory(error: BaseException) -> bool:
    """Whether it says that the device or the host has no memory left."""
    if isinstance(error, (MemoryError, libraries.torch().OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _HOST_MEMORY)


def words(error: BaseException) -> str:
    """Type and message on one line; of a long one the beginning."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 500 else f"{text[:500]} …"  # noqa: PLR2004 a message stays readable


def _drop_tensors(error: BaseException) -> None:
    """Let go of what the failed frames hold: the error is kept by its reader, the memory must not be."""
    traceback.clear_frames(error.__traceback__)
