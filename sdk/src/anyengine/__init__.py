"""One Python Engine API over every LLM inference engine.

::

    from anyengine import Engine, SamplingParams

    async with Engine.load("reference") as engine:
        answer = await engine.generate("Once upon a time", sampling=SamplingParams(temperature=0), max_tokens=16)
        print(answer.text)

``anyengine.sync.Engine`` is the same without ``await``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyengine.capabilities import Capabilities
    from anyengine.config import (
        EngineConfig,
        KVCacheConfig,
        LoRAConfig,
        ParallelConfig,
        SchedulingConfig,
        SpeculativeConfig,
    )
    from anyengine.engine import Engine
    from anyengine.errors import (
        AnyEngineError,
        EngineClosed,
        EngineDied,
        EngineStartupError,
        EngineUnresponsive,
        EnvironmentFailed,
        Failure,
        InvalidConfig,
        InvalidRequest,
        Misuse,
        ModelNotFound,
        OutOfMemory,
        OutOfSpace,
        Overloaded,
        PluginError,
        RequestTimeout,
        UnknownEngine,
        UnsupportedCapability,
        UnsupportedParameter,
    )
    from anyengine.hookspecs import hookimpl
    from anyengine.outputs import (
        Chunk,
        Completion,
        Embedding,
        Finish,
        FinishReason,
        Score,
        Timings,
        TokenLogprobs,
        Usage,
    )
    from anyengine.plugins import find_engines
    from anyengine.quantization import Calibration
    from anyengine.request import GenerateRequest, SamplingParams, Structured
    from anyengine.stats import EngineStats
    from anyengine.stream import Stream

__all__ = [
    "AnyEngineError",
    "Calibration",
    "Capabilities",
    "Chunk",
    "Completion",
    "Embedding",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineDied",
    "EngineStartupError",
    "EngineStats",
    "EngineUnresponsive",
    "EnvironmentFailed",
    "Failure",
    "Finish",
    "FinishReason",
    "GenerateRequest",
    "InvalidConfig",
    "InvalidRequest",
    "KVCacheConfig",
    "LoRAConfig",
    "Misuse",
    "ModelNotFound",
    "OutOfMemory",
    "OutOfSpace",
    "Overloaded",
    "ParallelConfig",
    "PluginError",
    "RequestTimeout",
    "SamplingParams",
    "SchedulingConfig",
    "Score",
    "SpeculativeConfig",
    "Stream",
    "Structured",
    "Timings",
    "TokenLogprobs",
    "UnknownEngine",
    "UnsupportedCapability",
    "UnsupportedParameter",
    "Usage",
    "find_engines",
    "hookimpl",
]

# Names are imported when they are first used (PEP 562): whoever imports this package to read a version or to catch an
# error does not wait for pydantic. Type checkers read the block above; a test holds the two together.
_MODULES = {
    "capabilities": ("Capabilities",),
    "config": (
        "EngineConfig",
        "KVCacheConfig",
        "LoRAConfig",
        "ParallelConfig",
        "SchedulingConfig",
        "SpeculativeConfig",
    ),
    "engine": ("Engine",),
    "errors": (
        "AnyEngineError",
        "EngineClosed",
        "EngineDied",
        "EngineStartupError",
        "EngineUnresponsive",
        "EnvironmentFailed",
        "Failure",
        "InvalidConfig",
        "InvalidRequest",
        "Misuse",
        "ModelNotFound",
        "OutOfMemory",
        "OutOfSpace",
        "Overloaded",
        "PluginError",
        "RequestTimeout",
        "UnknownEngine",
        "UnsupportedCapability",
        "UnsupportedParameter",
    ),
    "hookspecs": ("hookimpl",),
    "outputs": (
        "Chunk",
        "Completion",
        "Embedding",
        "Finish",
        "FinishReason",
        "Score",
        "Timings",
        "TokenLogprobs",
        "Usage",
    ),
    "plugins": ("find_engines",),
    "quantization": ("Calibration",),
    "request": ("GenerateRequest", "SamplingParams", "Structured"),
    "stats": ("EngineStats",),
    "stream": ("Stream",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 as lazy as what it imports

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
