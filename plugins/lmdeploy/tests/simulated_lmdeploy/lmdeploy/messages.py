"""Requests, configurations and outputs, with the validation of the release."""

from __future__ import annotations

import enum
import time
from typing import Any

from .simulation.facts import limit, make_dataclass, make_enum

__all__ = [
    "EngineEvent",
    "EngineOutput",
    "EventType",
    "GenerationConfig",
    "KVTransferConfig",
    "PytorchEngineConfig",
    "QuantPolicy",
    "RequestMetrics",
    "ResponseType",
    "ScheduleMetrics",
    "SpeculativeConfig",
    "TurbomindEngineConfig",
]

QuantPolicy: Any = make_enum("QuantPolicy", enum.IntEnum)
ResponseType: Any = make_enum("ResponseType")
EventType: Any = make_enum("EventType", enum.IntEnum)


def _policy(value: int) -> Any:
    try:
        return QuantPolicy(value)
    except ValueError as error:
        raise ValueError(f"invalid quant_policy: {value}") from error


class _Generation:
    def check(self: Any) -> None:
        assert self.n > 0, "n is not a positive integer"
        assert 0 <= self.top_p <= 1
        assert self.top_k >= 0, "top_k can not be a negative integer"
        assert 0 <= self.temperature <= limit("highest_temperature")
        assert 0 <= self.min_p <= 1, f"min_p should be in range [0, 1], but found {self.min_p}"
        if self.logprob_start_len < -1:
            raise ValueError("logprob_start_len must be greater than or equal to -1")
        if self.logprob_start_len >= 0 and (self.logprobs is None or self.logprobs < 0):
            raise ValueError("logprobs must be non-negative when logprob_start_len is non-negative")


class _Turbomind:
    def check(self: Any) -> None:
        assert self.dtype in limit("dtypes")
        assert self.gemm_input_dtype in (None, "float16", "bfloat16", "float8_e4m3")
        assert self.tp >= 1, "tp must be a positive integer"
        assert self.ep >= 1, "ep must be a positive integer"
        assert self.cache_max_entry_count > 0, "invalid cache_max_entry_count"
        self.quant_policy = _policy(self.quant_policy)
        assert self.quant_policy.name not in limit("not_for_turbomind"), "FP8 quantization is not supported"
        assert self.rope_scaling_factor >= 0, "invalid rope_scaling_factor"
        assert self.max_prefill_token_num >= 0, "invalid max_prefill_token_num"
        assert self.num_tokens_per_iter >= 0, "invalid num_tokens_per_iter"
        assert self.cache_prompt in ("all", "auto"), "invalid cache_prompt"
        assert self.cache_generation in ("all", "auto", "none"), "invalid cache_generation"
        assert self.cache_checkpoint_interval > 0, "invalid cache_checkpoint_interval"
        assert self.cache_prompt_boundary_skip >= 1, "invalid cache_prompt_boundary_skip"
        assert self.async_ in (0, 1), "async_ must be 0 (disabled) or 1 (enabled)"
        assert self.moe_a2a_backend in ("auto", "default", "deepep"), "invalid moe_a2a_backend"


class _Pytorch:
    def check(self: Any) -> None:
        if self.kernel_block_size == -1:
            self.kernel_block_size = self.block_size
        assert self.dtype in limit("dtypes")
        assert self.tp >= 1, "invalid tp"
        assert self.dp >= 1, "invalid dp"
        assert self.ep >= 1, "invalid ep"
        assert 0 < self.cache_max_entry_count < 1, "invalid cache_max_entry_count"
        assert self.num_cpu_blocks >= 0, "invalid num_cpu_blocks"
        assert self.max_prefill_token_num >= 0, "invalid max_prefill_token_num"
        assert self.num_gpu_blocks >= 0, "invalid num_gpu_blocks"
        self.quant_policy = _policy(self.quant_policy)
        assert self.device_type in ("cuda", "ascend", "maca", "camb"), f"invalid device_type: {self.device_type}"
        size = self.kernel_block_size
        assert size >= limit("smallest_block_pytorch"), f"kernel_block_size is {size}"
        assert size & (size - 1) == 0, f"kernel_block_size must be a power of 2, but got {size}"
        assert self.block_size >= size, "block_size must be >= kernel_block_size"
        assert self.block_size % size == 0, "block_size must be a multiple of kernel_block_size"
        if isinstance(self.kv_transfer_config, dict):
            self.kv_transfer_config = KVTransferConfig(**self.kv_transfer_config)


class _Speculative:
    def check(self: Any) -> None:
        if self.dflash_block_size is not None:
            if self.method != "dflash":
                raise ValueError("dflash_block_size is supported only when method is dflash")
            self.num_speculative_tokens = self.dflash_block_size - 1


class _Event:
    @classmethod
    def new_event(cls: Any, event_type: Any, timestamp: float | None = None) -> Any:
        """Stamped with the wall clock."""
        return cls(event_type, time.time() if timestamp is None else timestamp)


GenerationConfig: Any = make_dataclass("GenerationConfig", _Generation)
TurbomindEngineConfig: Any = make_dataclass("TurbomindEngineConfig", _Turbomind)
PytorchEngineConfig: Any = make_dataclass("PytorchEngineConfig", _Pytorch)
SpeculativeConfig: Any = make_dataclass("SpeculativeConfig", _Speculative)
KVTransferConfig: Any = make_dataclass("KVTransferConfig")
EngineEvent: Any = make_dataclass("EngineEvent", _Event)
RequestMetrics: Any = make_dataclass("RequestMetrics")
ScheduleMetrics: Any = make_dataclass("ScheduleMetrics")
EngineOutput: Any = make_dataclass("EngineOutput")
