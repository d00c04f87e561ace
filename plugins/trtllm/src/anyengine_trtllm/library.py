"""The one place that imports TensorRT-LLM: what the rest of the package uses of it, under plain names.

TensorRT-LLM is not there when this package is type-checked; so its classes are ``Any`` here, and nowhere else is there
an import of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from anyengine.errors import EngineStartupError

from anyengine_trtllm import versions

__all__ = ["CONFIGURATIONS", "Library", "load_library"]

#: Classes that a configuration is made of → the module that has them.
CONFIGURATIONS = {
    "AttentionDpConfig": "tensorrt_llm.llmapi.llm_args",
    "AutoDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "BuildConfig": "tensorrt_llm.builder",
    "CacheTransceiverConfig": "tensorrt_llm.llmapi.llm_args",
    "CalibConfig": "tensorrt_llm.llmapi.llm_args",
    "CudaGraphConfig": "tensorrt_llm.llmapi.llm_args",
    "DraftTargetDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "DynamicBatchConfig": "tensorrt_llm.llmapi.llm_args",
    "EagleDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "ExtendedRuntimePerfKnobConfig": "tensorrt_llm.llmapi.llm_args",
    "KvCacheConfig": "tensorrt_llm.llmapi.llm_args",
    "LookaheadDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "LoraConfig": "tensorrt_llm.lora_helper",
    "MTPDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "MedusaDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "MoeConfig": "tensorrt_llm.llmapi.llm_args",
    "NGramDecodingConfig": "tensorrt_llm.llmapi.llm_args",
    "Nvfp4GemmConfig": "tensorrt_llm.llmapi.llm_args",
    "PeftCacheConfig": "tensorrt_llm.llmapi.llm_args",
    "QuantConfig": "tensorrt_llm.models.modeling_utils",
    "SchedulerConfig": "tensorrt_llm.llmapi.llm_args",
    "TorchCompileConfig": "tensorrt_llm.llmapi.llm_args",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """TensorRT-LLM's classes, and torch.

    Attributes:
        llm: ``LLM`` of the backend that was asked for.
        sampling_params: ``SamplingParams``.
        guided: ``GuidedDecodingParams``.
        lora_request: ``LoRARequest``.
        quant_algo: ``QuantAlgo``.
        policies: field of ``SchedulerConfig`` → the enumeration of its values.
        classes: name of a class in :data:`CONFIGURATIONS` → the class.
        argument_names: fields of the backend's arguments.
        torch: the module.
    """

    llm: Any
    sampling_params: Any
    guided: Any
    lora_request: Any
    quant_algo: Any
    policies: dict[str, Any]
    classes: dict[str, Any]
    argument_names: frozenset[str]
    torch: Any

    def make(self, name: str, /, **fields: Any) -> Any:
        """One of the configuration classes, filled."""
        return self.classes[name](**fields)

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the first device: (free, total)."""
        free, total = self.torch.cuda.mem_get_info()
        return int(free), int(total)

    def compute_capability(self) -> tuple[int, int]:
        """Of the first device: (major, minor)."""
        major, minor = self.torch.cuda.get_device_capability()
        return int(major), int(minor)


@cache
def load_library(*, tensorrt: bool) -> Library:
    """Import TensorRT-LLM; takes many seconds, and starts MPI.

    Args:
        tensorrt: the backend that runs built engines, instead of the one in PyTorch.

    Raises:
        EngineStartupError: it cannot be imported, or lacks a part that the mapping needs.
    """
    try:
        root = import_module("tensorrt_llm._tensorrt_engine" if tensorrt else "tensorrt_llm")
        arguments = import_module("tensorrt_llm.llmapi.llm_args")
        sampling = import_module("tensorrt_llm.sampling_params")
        return Library(
            llm=root.LLM,
            sampling_params=sampling.SamplingParams,
            guided=sampling.GuidedDecodingParams,
            lora_request=import_module("tensorrt_llm.executor.request").LoRARequest,
            quant_algo=import_module("tensorrt_llm.quantization.mode").QuantAlgo,
            policies={
                "capacity_scheduler_policy": arguments.CapacitySchedulerPolicy,
                "context_chunking_policy": arguments.ContextChunkingPolicy,
            },
            classes={name: getattr(import_module(module), name) for name, module in CONFIGURATIONS.items()},
            argument_names=frozenset((arguments.TrtLlmArgs if tensorrt else arguments.TorchLlmArgs).model_fields),
            torch=import_module("torch"),
        )
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineStartupError(f"TensorRT-LLM cannot be imported: {error}") from error
    except AttributeError as error:
        raise EngineStartupError(
            f"TensorRT-LLM {versions.installed()} lacks a part that this plugin needs ({error}); it is written for "
            f"{'.'.join(map(str, versions.MAPPED))}"
        ) from error
