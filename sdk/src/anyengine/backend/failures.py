"""What an engine raises, and what a load that failed has said, as errors of ours.

For plugins of engines that raise their own exceptions. Nothing of the engine is imported for it: classes go by their
names, and the causes of a failed load by the words that they are told in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyengine.errors import AnyEngineError, EngineStartupError, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["MORE_MEMORY", "LoadCause", "load_failure", "request_failure"]

#: What to do about a load that runs out of memory; an advice for :class:`LoadCause`.
MORE_MEMORY = (
    "give the engine more (kv_cache.gpu_memory_fraction), or ask for less (kv_cache.capacity_tokens, max_model_len, "
    "scheduling.max_num_seqs)"
)


def request_failure(
    error: BaseException, known: Mapping[str, Callable[[BaseException], AnyEngineError]]
) -> AnyEngineError | None:
    """Ours for what a call into the engine raised.

    Args:
        error: what it raised; one of ours is returned as it is.
        known: ``module.Class`` to what makes ours of it. It is looked up along the method resolution order, so the most
            specific entry wins, and a class that a later release adds is taken for its nearest base that is there.

    Returns:
        None for what is not in the map: a bug of the plugin, or of the engine.
    """
    if isinstance(error, AnyEngineError):
        return error
    for base in type(error).__mro__:
        make = known.get(f"{base.__module__}.{base.__qualname__}")
        if make is not None:
            return make(error)
    return None


@dataclass(frozen=True, slots=True)
class LoadCause:
    """Why a load fails, and how it is told.

    Attributes:
        pattern: a regular expression; what it finds is quoted.
        error: of ours.
        advice: what it means or what to do, behind the quotation.
        field: of the configuration, before it.
    """

    pattern: str
    error: type[AnyEngineError]
    advice: str
    field: str | None = None


def load_failure(
    error: BaseException, engine: str, said: Sequence[str], causes: Sequence[LoadCause], *, summary: str | None = None
) -> AnyEngineError:
    """Ours for a load that failed.

    Args:
        error: what was raised; one of ours is returned as it is.
        engine: as it is called in messages.
        said: what the engine told of it, a piece a line, which is searched for causes.
        causes: the first that is found counts.
        summary: what stands in the error where no cause is known; the first piece if left out.
    """
    if isinstance(error, AnyEngineError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"memory did not suffice: {error}")
    text = "\n".join(said)
    for cause in causes:
        found = re.search(cause.pattern, text)
        if found is not None:
            place = f"{cause.field}: " if cause.field else ""
            return cause.error(f"{place}{found.group().strip()}; {cause.advice}", field=cause.field)
    return EngineStartupError(f"{engine} did not come up: {summary or said[0]}")
