"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING

from anyengine.backend import EngineDescription, EnginePlugin

from anyengine_vllm import versions
from anyengine_vllm.capabilities import declared
from anyengine_vllm.checkpoints import checkpoints
from anyengine_vllm.environments import variants

if TYPE_CHECKING:
    from anyengine.backend import Backend, QuantizeJob, QuantizeReport
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["NAME", "VllmPlugin", "plugin"]

NAME = "vllm"


class VllmPlugin(EnginePlugin):
    """vLLM's ``AsyncLLM``: paged attention and continuous batching, on NVIDIA GPUs and on CPUs.

    With ``native={"url": …}`` a running ``vllm serve`` instead, and nothing is started.
    """

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=NAME,
            plugin_version=version("anyengine-vllm"),
            engine_version=versions.installed(),
            unavailable=versions.unavailable(),
            in_process=False,
            attaches=True,
            capabilities=declared(),
            environments=variants(),
            checkpoints=checkpoints(),
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        if "url" in config.native:
            from anyengine_server import VLLM, attach  # noqa: PLC0415 brings an HTTP client

            return await attach(config, model, VLLM, engine=NAME)
        from anyengine_vllm.backend import load_backend  # noqa: PLC0415 its modules import vLLM

        return await load_backend(config, model)

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        from anyengine_vllm.quantize import quantize  # noqa: PLC0415 brings torch

        return await asyncio.to_thread(quantize, job)


plugin = VllmPlugin()
