"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

from importlib.metadata import version
from shutil import which
from typing import TYPE_CHECKING

from anyengine.backend import EngineDescription, EnginePlugin

from anyengine_tgi.capabilities import declared
from anyengine_tgi.checkpoints import CHECKPOINTS
from anyengine_tgi.launcher import PROGRAM

if TYPE_CHECKING:
    from anyengine.backend import Backend, QuantizeJob, QuantizeReport
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["NAME", "TgiPlugin", "plugin"]

NAME = "tgi"


class TgiPlugin(EnginePlugin):
    """Text Generation Inference: starts its launcher, or attaches to a server with ``native={"url": …}``."""

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=NAME,
            plugin_version=version("anyengine-tgi"),
            unavailable=None if which(PROGRAM) else f"there is no {PROGRAM} on the path; its container has it",
            in_process=False,
            attaches=True,
            capabilities=declared(),
            checkpoints=CHECKPOINTS,
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        from anyengine_tgi.startup import load_backend  # noqa: PLC0415 brings the HTTP client

        return await load_backend(config, model)

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        from anyengine_tgi.quantize import quantize  # noqa: PLC0415 as above

        return await quantize(job)


plugin = TgiPlugin()
