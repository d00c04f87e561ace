"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.backend import (
    CheckpointSupport,
    EngineDescription,
    EnginePlugin,
    EnvironmentVariant,
    QuantizedFormat,
    QuantizeReport,
)
from anyengine.capabilities import Capabilities, Conflict
from anyengine.errors import EngineStartupError, InvalidConfig, ModelNotFound, OutOfMemory, UnsupportedParameter
from anyengine.request import SamplingParams

if TYPE_CHECKING:
    from anyengine.backend import Backend, BackendInfo, QuantizeJob
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

    from anyengine_reference.core import Core
    from anyengine_reference.structured import ConstraintCompiler

__all__ = ["CAPABILITIES", "ReferencePlugin", "plugin"]

NAME = "reference"
MODELS = Path(__file__).parent / "models"

CAPABILITIES = Capabilities(
    config=frozenset({
        "execution",
        "kv_cache.block_size",
        "kv_cache.capacity_tokens",
        "kv_cache.prefix_caching",
        "max_model_len",
        "scheduling.chunked_prefill",
        "scheduling.max_num_batched_tokens",
        "scheduling.max_num_seqs",
    }),
    sampling=frozenset(SamplingParams.model_fields),
    request=frozenset({"cache_salt", "ignore_eos", "min_tokens", "priority", "stop_token_ids"}),
    token_prompts=True,
    logprobs="raw",
    prompt_logprobs="raw",
    max_logprobs=1000,
    score=True,
    structured=frozenset({"choice", "grammar", "json_schema", "regex"}),
    dtypes=frozenset({"float32"}),
    devices=frozenset({"cpu"}),
    quantization=frozenset({"int8"}),
    quantize=frozenset({"int4-w4a16", "int8-w8a16", "int8-w8a8"}),
    calibrated=frozenset({"int8-w8a8"}),
    speculative=frozenset({"draft_model", "ngram"}),
    determinism=frozenset({"batch-invariant", "run"}),
    unseeded="fixed",
    conflicts=(
        Conflict(
            "request.structured",
            "request.ignore_eos",
            "a complete structure can only be followed by an end-of-sequence token",
        ),
    ),
)  # fmt: skip

ENVIRONMENTS = {
    "cpu": EnvironmentVariant(
        python=">=3.11,<3.14",
        steps=(),  # its own dependencies are all that it needs
        tested="the plugin's tests, Linux on x86-64, Python 3.11, November 2026",
    )
}


CHECKPOINTS = CheckpointSupport(
    architectures=("llama", "mistral", "qwen2", "qwen3"),
    formats=(
        *(
            QuantizedFormat(
                method="compressed-tensors", format="pack-quantized", scheme=scheme, asymmetric=True, reordered=True
            )
            for scheme in ("int8-w8a16", "int4-w4a16")
        ),
        QuantizedFormat(method="compressed-tensors", format="int-quantized", scheme="int8-w8a8", group_sizes=(0,)),
        QuantizedFormat(method="compressed-tensors", format="float-quantized", scheme="fp8-dynamic", group_sizes=(0,)),
    ),
)


class ReferencePlugin(EnginePlugin):
    """NumPy, float32, exact; for Llama, Mistral, Qwen2 and Qwen3 checkpoints."""

    def describe(self) -> EngineDescription:
        own = version("anyengine-reference")
        models = {folder.name: str(folder) for folder in sorted(MODELS.iterdir()) if folder.is_dir()}
        return EngineDescription(
            name=NAME,
            plugin_version=own,
            engine_version=own,
            in_process=True,
            capabilities=CAPABILITIES,
            models=models,
            default_model="storyteller",
            environments=ENVIRONMENTS,
            checkpoints=CHECKPOINTS,
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        _check(config, model)
        from anyengine_reference.backend import ReferenceBackend  # noqa: PLC0415 brings NumPy

        try:
            # A load that is cancelled leaves nothing running: the engine's thread is started here, not there.
            return ReferenceBackend(*await asyncio.to_thread(_prepare, config, model))
        except MemoryError as error:
            raise OutOfMemory(f"there is not enough memory for {model.name}: {error}", engine=NAME) from error

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        return await asyncio.to_thread(_quantize, job)


def _check(config: EngineConfig, model: ModelFiles) -> None:
    """What cannot be told by field names alone."""
    if config.execution == "graph":
        raise UnsupportedParameter(
            "reference cannot honour execution='graph'; it supports auto, eager",
            engine=NAME,
            field="execution",
            supported=("auto", "eager"),
        )
    if config.speculative is not None and (config.speculative.method == "draft_model") != (model.draft is not None):
        wrong = "needs a model" if model.draft is None else "takes no model"
        raise InvalidConfig(
            f"speculative.model: the method {config.speculative.method} {wrong}", engine=NAME, field="speculative.model"
        )
    if config.speculative is not None and config.speculative.ngram_min > config.speculative.ngram_max:
        raise InvalidConfig(
            f"speculative.ngram_min: {config.speculative.ngram_min} is more than ngram_max, "
            f"{config.speculative.ngram_max}; nothing would ever be proposed",
            engine=NAME,
            field="speculative.ngram_min",
        )


def _prepare(config: EngineConfig, model: ModelFiles) -> tuple[BackendInfo, Core, ConstraintCompiler | None]:
    from anyengine_reference.backend import prepare  # noqa: PLC0415 brings NumPy
    from anyengine_reference.model import BadCheckpoint, UnsupportedModel  # noqa: PLC0415

    try:
        return prepare(config, model, CAPABILITIES)
    except UnsupportedModel as error:
        raise UnsupportedParameter(f"model: {error}", engine=NAME, field="model") from error
    except BadCheckpoint as error:
        raise ModelNotFound(f"{model.path} cannot be loaded: {error}", engine=NAME, field="model") from error
    except OSError as error:
        raise EngineStartupError(f"{model.path} cannot be read: {error}", engine=NAME) from error


def _quantize(job: QuantizeJob) -> QuantizeReport:
    from anyengine_reference.model import BadCheckpoint, UnsupportedModel  # noqa: PLC0415
    from anyengine_reference.model.compressed import quantization_config  # noqa: PLC0415
    from anyengine_reference.quantize import quantize_checkpoint  # noqa: PLC0415 brings NumPy

    try:
        made = quantize_checkpoint(
            job.model.path,
            job.output,
            job.scheme,
            calibration=job.calibration or (),
            progress=job.progress,
            cancelled=job.cancelled,
        )
    except UnsupportedModel as error:
        raise UnsupportedParameter(f"model: {error}", engine=NAME, field="model") from error
    except BadCheckpoint as error:
        raise ModelNotFound(f"{job.model.path} cannot be quantized: {error}", engine=NAME, field="model") from error
    recipe: dict[str, Any] = {"method": "round-to-nearest", "quantization_config": quantization_config(made.stored)}
    if made.smoothing is not None:
        recipe["smoothquant"] = {"strength": made.smoothing}
    return QuantizeReport(recipe=recipe, tools={"numpy": version("numpy")})


plugin = ReferencePlugin()
