"""The entry point: what the engine is, and how it is brought up."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from anyengine.backend import EngineDescription, EnginePlugin, EnvironmentVariant, PipStep
from anyengine.backend.releases import installed_version
from anyengine.capabilities import Capabilities, Conflict
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.request import SamplingParams

from anyengine_transformers import errors, libraries
from anyengine_transformers.checkpoints import checkpoints
from anyengine_transformers.errors import NAME

if TYPE_CHECKING:
    from anyengine.backend import Backend
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["CAPABILITIES", "TransformersPlugin", "plugin"]

CAPABILITIES = Capabilities(
    config=frozenset({"execution", "max_model_len", "scheduling.max_num_seqs", "seed", "trust_remote_code"}),
    native=True,
    sampling=frozenset(SamplingParams.model_fields),
    request=frozenset({"ignore_eos", "min_tokens", "priority", "stop_token_ids"}),
    token_prompts=True,
    logprobs="raw",
    prompt_logprobs="raw",
    max_logprobs=1000,
    score=True,
    structured=frozenset({"choice", "grammar", "json_schema", "regex"}),
    dtypes=frozenset({"bfloat16", "float16", "float32"}),
    devices=frozenset({"cpu", "cuda"}),
    determinism=frozenset({"batch-invariant", "run"}),
    unseeded="fixed",
    conflicts=(
        Conflict(
            "request.structured",
            "request.ignore_eos",
            "a complete structure can only be followed by an end-of-sequence token",
        ),
    ),
    unproven=frozenset({"devices.cuda"}),
)

#: The first needs an index that has torch's builds for the CPU; from PyPI, both get the build for CUDA.
_PACKAGES = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "safetensors==0.8.0",
    "compressed-tensors==0.17.0",
)
_PYTHON = ">=3.11,<3.14"
ENVIRONMENTS = {
    "cpu": EnvironmentVariant(
        python=_PYTHON,
        steps=(PipStep(_PACKAGES),),
        tested="the plugin's tests, Linux on x86-64, Python 3.11, torch 2.13.0+cpu, November 2026",
    ),
    "cuda": EnvironmentVariant(
        python=_PYTHON,
        platform="linux",
        steps=(PipStep(_PACKAGES),),
        tested="transformers 5.17.0 with torch 2.11.0 and CUDA 13 on an H200; not through this package",
    ),
}


class TransformersPlugin(EnginePlugin):
    """The oracle: any causal language model that transformers has, float32 unless told otherwise."""

    def describe(self) -> EngineDescription:
        missing = libraries.missing()
        return EngineDescription(
            name=NAME,
            plugin_version=version("anyengine-transformers"),
            engine_version=installed_version("transformers"),
            unavailable=(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here"
                if missing
                else None
            ),
            # torch has threads, settings and a memory pool that belong to the whole process.
            in_process=False,
            capabilities=CAPABILITIES,
            checkpoints=checkpoints(),
            environments=ENVIRONMENTS,
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        _check(config)
        from anyengine_transformers.backend import TransformersBackend, prepare  # noqa: PLC0415 brings NumPy

        try:
            # A load that is cancelled leaves nothing running: the engine's thread is started here, not there.
            return TransformersBackend(*await asyncio.to_thread(prepare, config, model, CAPABILITIES))
        except Exception as error:
            mapped = errors.at_load(error, model.name)
            if mapped is error:
                raise
            raise mapped from error


def _check(config: EngineConfig) -> None:
    """What cannot be told by field names alone."""
    if config.execution == "graph":
        raise UnsupportedParameter(
            f"{NAME} cannot honour execution='graph'; it supports auto, eager",
            engine=NAME,
            field="execution",
            supported=("auto", "eager"),
        )
    from anyengine_transformers.loading import ATTENTION  # noqa: PLC0415 needed only by a load

    for name, value in config.native.items():
        if name != "attn_implementation":
            raise InvalidConfig(
                f"native.{name}: {NAME} knows only attn_implementation", engine=NAME, field=f"native.{name}"
            )
        if value not in cast("tuple[object, ...]", ATTENTION):
            raise InvalidConfig(
                f"native.attn_implementation: {value!r} is none of {', '.join(ATTENTION)}",
                engine=NAME,
                field="native.attn_implementation",
            )


plugin = TransformersPlugin()
