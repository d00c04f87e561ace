"""What an engine plugin implements: token ids in, token ids out.

:class:`EnginePlugin` is the light object behind an entry point: it describes and loads. :class:`Backend` is a loaded
engine. Everything about text (templates, tokenisation, stop strings, ``n``) is done by the SDK before and after.
"""

from anyengine.backend.base import (
    Backend,
    BackendInfo,
    EngineDescription,
    EnginePlugin,
    EnvironmentVariant,
    PipStep,
)
from anyengine.backend.checkpoints import CheckpointSupport, QuantizedFormat, QuantizeJob, QuantizeReport
from anyengine.backend.collector import DeltaCollector
from anyengine.backend.types import TokenDelta, TokenFinish, TokenRequest

__all__ = [
    "Backend",
    "BackendInfo",
    "CheckpointSupport",
    "DeltaCollector",
    "EngineDescription",
    "EnginePlugin",
    "EnvironmentVariant",
    "PipStep",
    "QuantizeJob",
    "QuantizeReport",
    "QuantizedFormat",
    "TokenDelta",
    "TokenFinish",
    "TokenRequest",
]
