"""A simulated toolchain that copies, and small checkpoints to say something about."""

import asyncio
import json
import shutil

import pytest
from anyengine.backend import QuantizeReport
from anyengine.testing import ScriptedPlugin, all_capabilities
from msgspec.structs import replace

CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
        }
    },
}


class Copies(ScriptedPlugin):
    """Copies the source, and says in its config.json that it is quantised.

    Attributes:
        jobs: those that it was given.
        before, after: called with the job, around the copy.
    """

    before = after = staticmethod(lambda _job: None)

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.jobs = []

    def describe(self):
        described = super().describe()
        capabilities = replace(
            all_capabilities(),
            quantize=frozenset({"int8-w8a16", "int8-w8a8"}),
            calibrated=frozenset({"int8-w8a8"}),
        )
        return replace(described, capabilities=capabilities)

    async def quantize(self, job):
        self.jobs.append(job)
        return await asyncio.to_thread(self.copy, job)

    def copy(self, job):
        self.before(job)
        job.progress(1, 2)
        shutil.copytree(job.model.path, job.output, dirs_exist_ok=True)
        config = json.loads((job.output / "config.json").read_text())
        (job.output / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIG}))
        job.progress(2, 2)
        self.after(job)
        return QuantizeReport(recipe={"method": "copy"}, tools={"copier": "1.0"})


@pytest.fixture
def copies(model_folder):
    """The plugin object of the simulated toolchain; its model is ``scripted``."""
    return Copies(lambda _request: [0], str(model_folder), name="copies")


@pytest.fixture
def quantization_config():
    return CONFIG
