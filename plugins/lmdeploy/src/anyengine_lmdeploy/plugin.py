"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING

from anyengine.backend import EngineDescription, EnginePlugin

from anyengine_lmdeploy import versions
from anyengine_lmdeploy.capabilities import declared
from anyengine_lmdeploy.checkpoints import checkpoints
from anyengine_lmdeploy.environments import variants

if TYPE_CHECKING:
    from anyengine.backend import Backend, QuantizeJob, QuantizeReport
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["NAME", "LMDeployPlugin", "plugin"]

NAME = "lmdeploy"


class LMDeployPlugin(EnginePlugin):
    """LMDeploy's ``AsyncEngine``: TurboMind, its engine in C++, or its engine in PyTorch.

    ``native={"backend": "turbomind"}`` or ``"pytorch"`` chooses; else TurboMind runs what it can, and PyTorch the rest.
    With ``native={"url": …}`` a running ``lmdeploy serve api_server`` instead, and nothing is started.
    """

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=NAME,
            plugin_version=version("anyengine-lmdeploy"),
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
            from anyengine_server import LMDEPLOY, attach  # noqa: PLC0415 brings an HTTP client

            return await attach(config, model, LMDEPLOY, engine=NAME)
        from anyengine_lmdeploy.backend import load_backend  # noqa: PLC0415 its modules import the engine

        return await load_backend(config, model)

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        from anyengine_lmdeploy.quantize import quantize  # noqa: PLC0415 brings torch

        return await asyncio.to_thread(quantize, job)


plugin = LMDeployPlugin()
