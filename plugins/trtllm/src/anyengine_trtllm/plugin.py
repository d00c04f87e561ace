"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING

from anyengine.backend import EngineDescription, EnginePlugin

from anyengine_trtllm import versions
from anyengine_trtllm.capabilities import declared
from anyengine_trtllm.checkpoints import CHECKPOINTS
from anyengine_trtllm.environments import variants

if TYPE_CHECKING:
    from anyengine.backend import Backend, QuantizeJob, QuantizeReport
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["NAME", "TrtllmPlugin", "plugin"]

NAME = "trtllm"


class TrtllmPlugin(EnginePlugin):
    """TensorRT-LLM's ``LLM``: its PyTorch backend, or with ``native={"backend": "tensorrt"}`` a built engine.

    With ``native={"url": …}`` a running ``trtllm-serve`` instead, and nothing is started.
    """

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=NAME,
            plugin_version=version("anyengine-trtllm"),
            engine_version=versions.installed(),
            unavailable=versions.unavailable(),
            in_process=False,
            attaches=True,
            capabilities=declared(),
            checkpoints=CHECKPOINTS,
            environments=variants(),
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        if "url" in config.native:
            from anyengine_server import TRTLLM, attach  # noqa: PLC0415 brings an HTTP client

            return await attach(config, model, TRTLLM, engine=NAME)
        from anyengine_trtllm.backend import load_backend  # noqa: PLC0415 its modules import the engine

        return await load_backend(config, model)

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        from anyengine_trtllm.quantize import quantize  # noqa: PLC0415 brings torch

        return await asyncio.to_thread(quantize, job)


plugin = TrtllmPlugin()
