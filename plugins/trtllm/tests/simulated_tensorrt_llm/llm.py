"""The simulated ``LLM`` and its results."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import tempfile
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from anyengine_conformance.adapters import merge

from .executor import Executor
from .reports import IterationResult
from .torch import Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["RequestOutput", "SimulatedLLM"]

#: Our reasons → TensorRT-LLM's.
_REASONS = {"stop": "stop", "length": "length", "abort": "cancelled"}


class CompletionOutput:
    """One sequence of a result; it grows, and every step yields this same object."""

    def __init__(self, fields: dict[str, Any]) -> None:
        for name, facts in fields.items():
            setattr(
                self, name, [] if facts.get("expression") == "<factory list>" else copy.deepcopy(facts.get("default"))
            )
        self.index = 0

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]


class RequestOutput:
    """A result: awaited, or iterated over; bound to the loop that it was made on."""

    def __init__(
        self,
        llm: SimulatedLLM,
        executor: Executor,
        prompt: list[int],
        params: Any,
        *,
        streaming: bool,
        salt: str | None,
    ) -> None:
        asyncio.get_running_loop()  # the real one asserts it as late as in its iterator
        self._llm, self._executor, self._params, self._streaming = llm, executor, params, streaming
        self.prompt_token_ids = prompt
        self.sampling_params = params
        self.cached_tokens = 0
        self.outputs = [CompletionOutput(llm.facts["classes"]["CompletionOutput"]["fields"])]
        self.context_logits: Tensor | None = None
        self._done = self._aborted = self._dropped = False
        self._aborting: asyncio.Task[None] | None = None
        in_cpp = llm.in_cpp
        self.request_id, self._collector, self._sequence = executor.submit(prompt, params, salt, in_cpp=in_cpp)

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self._aborted = True
        self._dropped = self._dropped or (not self._done and self._executor.waits_for_a_place(self._sequence))
        if self._aborting is None and not self._done:
            self._aborting = asyncio.get_running_loop().create_task(self._executor.abort(self.request_id))

    def aborted(self) -> bool:
        return self._aborted

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        if not self._streaming:
            return await self.aresult()
        await self._step()
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()

    async def aresult(self) -> RequestOutput:
        while not self._done:
            await self._step()
        return self

    async def _step(self) -> None:
        try:
            delta = await anext(self._collector)
        except StopAsyncIteration:
            raise self._llm.request_error("the executor gave no final response") from None
        except Exception as error:
            self._done = True
            raise self._llm.request_error(str(error)) from error
        if self._dropped:
            # It is taken out of the queue, and nobody is told.
            await asyncio.get_running_loop().create_future()
        output, params = self.outputs[0], self._params
        if not self._streaming and self._aborted and delta.finish is None:
            delta.token_ids = []
        output._last_token_ids_len = len(output.token_ids)
        output.token_ids.extend(delta.token_ids)
        if delta.finish is None:
            return
        self._done = True
        # Results of the runtime in C++ have no such field: 0 stays.
        self.cached_tokens = 0 if self._llm.tensorrt else delta.finish.cached_tokens or 0
        output.finish_reason = _REASONS[delta.finish.reason]
        if delta.finish.reason == "stop":
            if not self._llm.in_cpp and self._by_stop_word(output) and output.length >= params.max_tokens:
                # That sampler looks at the length after the stop words, and at its own end token after both.
                output.finish_reason = "length"
            else:
                self._ended(output)
        if delta.finish.reason != "abort":
            await asyncio.to_thread(self._give_logits, output)
        if params.return_perf_metrics:
            raise NotImplementedError

    def _by_stop_word(self, output: Any) -> bool:
        """Whether the last token is a stop word, and not the engine's own end token."""
        return output.token_ids[-1] != (-1 if self._params.ignore_eos else self._params.end_id)

    def _ended(self, output: Any) -> None:
        """By the engine's own end token, which the sampler in C++ leaves out, or by a stop word, which is cut off."""
        if not self._by_stop_word(output):
            if self._llm.in_cpp:
                output.token_ids.pop()
            return
        output.stop_reason = output.token_ids[-1]
        if not self._params.include_stop_str_in_output:
            output.token_ids.pop()

    def _give_logits(self, output: Any) -> None:
        params, prompt = self._params, len(self.prompt_token_ids)
        if not (params.return_context_logits or params.return_generation_logits):
            return
        rows = self._executor.logits(self.prompt_token_ids + output.token_ids)
        if params.return_context_logits:
            # Of what came out of the cache there are none.
            self.context_logits = Tensor(rows[self.cached_tokens : prompt])
        if params.return_generation_logits:
            output.generation_logits = Tensor(rows[prompt - 1 : prompt - 1 + output.length])


class SimulatedLLM:
    """``LLM`` of one of the two backends.

    Args:
        classes: made of the facts.
        facts: the contract.
        tensorrt: the backend that runs built engines.
    """

    def __init__(self, classes: dict[str, Any], facts: dict[str, Any], model: Any, *, tensorrt: bool, **kwargs: Any):
        self.facts, self._classes, self.tensorrt = facts, classes, tensorrt
        self.request_error = classes["RequestError"]
        self._closed = False
        kind = classes["TrtLlmArgs" if tensorrt else "TorchLlmArgs"]
        if not tensorrt:
            only = set(classes["TrtLlmArgs"].model_fields) - set(kind.model_fields)
            for name in set(kwargs) & only:
                raise ValueError(f"{name} is specific to TensorRT backend and cannot be used with PyTorch backend")
        self.args = kind(model=model, **kwargs)
        source, built = self._source(Path(model))
        self._check_arguments(built)
        build = self.args.build_config if tensorrt else None
        limits = {
            name: built.get(name) or getattr(build or self.args, name)
            for name in ("max_seq_len", "max_num_tokens", "max_batch_size")
        }
        self._step = limits["max_num_tokens"]
        # The sampler of "auto" is the one in PyTorch.
        self.in_cpp = tensorrt or str(self.args.sampler_type) == "TRTLLMSampler"
        self.executor = Executor(source, Path(str(self.args.tokenizer or source)), self.args, limits)
        #: Adapters are merged into weights of their own, each with an executor: slow, and right.
        self._adapted: dict[str, Executor] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="simulated-adapters-")
        self._source_folder = source
        self._limits = limits
        self._events: list[dict[str, Any]] = []
        self._executor = SimpleNamespace(_iter_stats_result=None, _iter_kv_events_result=None, mpi_futures=[Future()])

    def _source(self, model: Path) -> tuple[Path, dict[str, Any]]:
        """The checkpoint, and what an engine was built with."""
        file = model / "config.json"
        if not file.is_file():
            raise ValueError(f"{model} is neither a checkpoint nor an engine")
        content = json.loads(file.read_text())
        if "build_config" not in content:
            return model, {}
        if not self.tensorrt:
            raise ValueError("an engine needs the TensorRT backend")
        return Path(content["simulated_source"]), content["build_config"]

    def _check_arguments(self, built: dict[str, Any]) -> None:
        args = self.args
        if self.tensorrt and args.guided_decoding_backend not in (None, "xgrammar"):
            raise ValueError("the TensorRT backend has xgrammar only")
        if self.tensorrt and args.kv_cache_config.dtype != "auto":
            raise AssertionError("kv_cache_config.dtype must be auto")
        if built and (args.build_config is not None or args.quant_config is not None):
            raise ValueError("an engine has been built already")
        if args.speculative_config is not None and not self.tensorrt and str(args.sampler_type) == "TRTLLMSampler":
            raise ValueError("TRTLLMSampler does not support speculative decoding")

    def save(self, engine_dir: str) -> None:
        if not self.tensorrt:
            raise RuntimeError("only a built engine can be saved")
        folder = Path(engine_dir)
        folder.mkdir(parents=True, exist_ok=True)
        args = self.args
        algorithm = None if args.quant_config is None else args.quant_config.quant_algo
        model = {
            "dtype": "bfloat16" if args.dtype == "auto" else args.dtype,
            "quantization": {"quant_algo": None if algorithm is None else str(algorithm)},
            "mapping": {"tp_size": args.tensor_parallel_size, "pp_size": args.pipeline_parallel_size},
        }
        content = {
            "build_config": self._limits,
            "pretrained_config": model,
            "simulated_source": str(self._source_folder),
        }
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "rank0.engine").write_bytes(b"simulated")

    def generate_async(
        self,
        inputs: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        streaming: bool = False,  # noqa: FBT001, FBT002 as TensorRT-LLM has it
        cache_salt: str | None = None,
    ) -> RequestOutput:
        if self._closed:
            raise RuntimeError("LLM is shutting down")
        if not isinstance(inputs, list) or not all(isinstance(token, int) for token in inputs):
            raise TypeError("The inputs must be type str or list of int")
        params = sampling_params or self._classes["SamplingParams"]()
        if not isinstance(params, self._classes["SamplingParams"]):
            raise TypeError("sampling_params must be SamplingParams")
        if params.end_id is None:
            raise NotImplementedError("what the tokenizer says is not simulated: give end_id")
        if len(inputs) > self._step and not self.args.enable_chunked_prefill:
            raise self.request_error(
                f"The sum of prompt length ({len(inputs)}) and query length (0) should not exceed max_num_tokens "
                f"({self._step})"
            )
        if params.guided_decoding is not None and self.args.guided_decoding_backend is None:
            raise ValueError("guided_decoding_backend must be set")
        if lora_request is not None and not self.args.enable_lora:
            raise ValueError("lora_request needs enable_lora")
        if self.tensorrt and (params.return_context_logits or params.return_generation_logits):
            raise ValueError("the engine was not built to return logits")
        if self.args.kv_cache_config.event_buffer_max_size:
            self._events.append({"event_id": len(self._events), "data": {"type": "stored"}})
        self._expect_reports()
        executor = self.executor if lora_request is None else self._executor_of(Path(lora_request.lora_path))
        return RequestOutput(self, executor, list(inputs), params, streaming=streaming, salt=cache_salt)

    def _executor_of(self, adapter: Path) -> Executor:
        if str(adapter) not in self._adapted:
            merged = Path(self._folder.name) / str(len(self._adapted))
            merge(self._source_folder, adapter, merged)
            tokenizer = Path(str(self.args.tokenizer or self._source_folder))
            self._adapted[str(adapter)] = Executor(merged, tokenizer, self.args, self._limits)
        return self._adapted[str(adapter)]

    def _expect_reports(self) -> None:
        """There are none before the first request; with each they are expected anew."""
        executor = self._executor
        if executor._iter_stats_result is None:
            executor._iter_stats_result = IterationResult(self._iterations)
            executor._iter_kv_events_result = IterationResult(self._drain_events)
        executor._iter_stats_result.mark_undone()
        executor._iter_kv_events_result.mark_undone()

    def _iterations(self) -> list[dict[str, Any]]:
        return [] if self.tensorrt or not self.args.enable_iter_perf_stats else self.executor.drain()

    def _drain_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:  # noqa: ASYNC109
        result = self._executor._iter_stats_result
        if result is None:
            return
        result.set_timeout(timeout)
        async for iteration in result:
            yield iteration

    async def get_kv_cache_events_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:  # noqa: ASYNC109
        result = self._executor._iter_kv_events_result
        assert result is not None, "KV Event IterationResult is not properly instantiated."
        result.set_timeout(timeout)
        async for event in result:
            yield event

    def _check_health(self) -> bool:
        return not self._closed

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            for future in self._executor.mpi_futures:
                if not future.done():
                    future.set_result(None)
            for executor in (self.executor, *self._adapted.values()):
                executor.stop()
            self._folder.cleanup()


def parameters(method: Any) -> set[str]:
    """Names, to be held against the contract."""
    return set(inspect.signature(method).parameters) - {"self"}
