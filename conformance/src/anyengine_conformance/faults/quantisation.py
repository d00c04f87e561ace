"""Engines that quantise badly."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

import anyio.to_thread
from anyengine.backend import QuantizeReport
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenPlugin, fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anyengine import Capabilities, EngineConfig, Score
    from anyengine.backend import Backend, BackendInfo, EngineDescription, QuantizeJob
    from anyengine.hub import ModelFiles

_MADE = "int8-w8a16"


class FlatScores(BrokenBackend):
    """With quantised weights every distribution is flatter than it should be."""

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        score = await self.inner.score(token_ids, logprobs)
        if self.config.quantization is None:
            return score
        entries = [
            entry
            and replace(entry, logprob=entry.logprob - 1, top={token: value - 1 for token, value in entry.top.items()})
            for entry in score.entries
        ]
        return replace(score, entries=entries)

    @property
    def info(self) -> BackendInfo:
        info = self.inner.info
        schemes = frozenset({self.config.quantization} if self.config.quantization else ())
        return replace(info, capabilities=replace(info.capabilities, quantization=schemes))


class BadlyLoaded(BrokenPlugin):
    """Declares a scheme, and gets its scales wrong."""

    backend = FlatScores
    scheme: ClassVar[str]

    def describe(self) -> EngineDescription:
        described = self.inner.describe()
        return replace(described, capabilities=replace(described.capabilities, quantization=frozenset({self.scheme})))


@fault("quantisation.load-int8", "int8 scales are wrong")
class BadInt8(BadlyLoaded):
    scheme = "int8"


@fault("quantisation.load-fp8", "fp8 scales are wrong")
class BadFp8(BadlyLoaded):
    scheme = "fp8"


@fault("quantisation.load-bitsandbytes", "4-bit scales are wrong")
class BadFourBits(BadlyLoaded):
    scheme = "bitsandbytes"


@fault("quantisation.undeclared-is-refused", "an unknown scheme is ignored")
class TakesAnyScheme(BrokenPlugin):
    def describe(self) -> EngineDescription:
        described = self.inner.describe()
        schemes = described.capabilities.quantization | {"no-such-scheme"}
        return replace(described, capabilities=replace(described.capabilities, quantization=schemes))


def _quantising(capabilities: Capabilities) -> Capabilities:
    return replace(capabilities, quantize=frozenset({_MADE}))


class BesideCopies(BrokenBackend):
    """Declares what its plugin makes."""

    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, capabilities=_quantising(self.inner.info.capabilities))


class Copies(BrokenPlugin):
    """A quantiser that copies, with a fault."""

    backend = BesideCopies

    def describe(self) -> EngineDescription:
        described = self.inner.describe()
        return replace(described, capabilities=_quantising(described.capabilities))

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        await anyio.to_thread.run_sync(self.copy, job.model.path, job.output)
        return QuantizeReport()

    def copy(self, source: Path, output: Path) -> None:
        """Make the output: it says that it is quantised, and is not."""
        shutil.copytree(source, output, dirs_exist_ok=True)
        config = json.loads((output / "config.json").read_bytes())
        stated = {**config, "quantization_config": {"quant_method": "simulated"}}
        (output / "config.json").write_text(json.dumps(stated), "utf-8")


@fault("quantisation.source-stays-untouched", "the source's files are opened for writing")
class TouchesSource(Copies):
    def copy(self, source: Path, output: Path) -> None:
        super().copy(source, output)
        os.utime(source / "config.json")


@fault("quantisation.output-is-complete", "the output's weights are the source's")
class CopiesOnly(Copies):
    pass


class CoarseScales(BrokenPlugin):
    """Makes checkpoints with a wrong scale in one layer."""

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        from anyengine_conformance.families.quantisation import plant  # noqa: PLC0415 as the check does it

        report = await self.inner.quantize(job)
        await anyio.to_thread.run_sync(plant, job.output)
        return report


@fault("quantisation.made-checkpoint-drifts-little", "int8 scales of one layer are doubled", base="reference")
class CoarseInt8(CoarseScales):
    pass


@fault("quantisation.made-int8-w8a8-drifts-little", "scales of one layer are doubled", base="reference")
class CoarseInt8Rows(CoarseScales):
    pass


@fault("quantisation.made-int4-w4a16-drifts-little", "scales of the groups of one layer are doubled", base="reference")
class CoarseInt4(CoarseScales):
    pass


class IgnoresWeights(BrokenPlugin):
    """Loads its own model whatever made checkpoint it is given."""

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        if model.path.name != "made":
            return await super().load(config, model)
        from anyengine.hub import resolve_model  # noqa: PLC0415 only this fault needs it

        described = self.inner.describe()
        name: Any = described.default_model
        healthy = await anyio.to_thread.run_sync(lambda: resolve_model(name, builtin=described.models))
        return self.backend(await self.inner.load(config, healthy), config)


@fault("quantisation.wrong-scale-is-caught", "a quantised checkpoint is known by its name only", base="reference")
class IgnoresInt8(IgnoresWeights):
    pass


@fault("quantisation.int8-w8a8-wrong-scale-is-caught", "a checkpoint is known by its name only", base="reference")
class IgnoresInt8Rows(IgnoresWeights):
    pass


@fault("quantisation.int4-w4a16-wrong-scale-is-caught", "a checkpoint is known by its name only", base="reference")
class IgnoresInt4(IgnoresWeights):
    pass
