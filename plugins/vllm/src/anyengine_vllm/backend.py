"""vLLM, loaded."""

from __future__ import annotations

import asyncio
import math
from itertools import count
from typing import TYPE_CHECKING, Any

from anyengine.backend import Backend, BackendInfo, TokenDelta, TokenFinish, TokenRequest
from anyengine.backend.cancellation import despite_cancellation
from anyengine.errors import (
    EngineClosed,
    EngineDied,
    InvalidRequest,
    PluginError,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.outputs import Embedding, Score
from anyengine.request import SamplingParams
from msgspec.structs import replace

from anyengine_vllm import outputs, versions
from anyengine_vllm import request as requests
from anyengine_vllm.barrier import Barrier
from anyengine_vllm.capabilities import narrowed
from anyengine_vllm.config import adapter_slots
from anyengine_vllm.errors import request_error
from anyengine_vllm.lora import Adapters
from anyengine_vllm.startup import Running, start, stop
from anyengine_vllm.taken import capacity_tokens, check_taken, dtype_of, max_num_seqs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from anyengine.config import EngineConfig
    from anyengine.errors import AnyEngineError
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

__all__ = ["VllmBackend", "load_backend"]

#: Lines of the engine's log in an error.
_LOG_TAIL = 40


async def load_backend(config: EngineConfig, model: ModelFiles) -> VllmBackend:
    """Bring vLLM up, with the adapters that were asked for."""
    running = await start(config, model)
    backend: VllmBackend | None = None
    try:
        backend = VllmBackend(config, running)
        await backend.prepare(model)
    except BaseException as error:
        await despite_cancellation(stop(running) if backend is None else backend.close())
        mapped = request_error(error)
        if mapped is None or mapped is error:
            raise
        raise mapped from error
    return backend


class VllmBackend(Backend):
    """Token level face of ``AsyncLLM``, whose engine core and workers are processes of their own.

    Made on the event loop that it serves.
    """

    def __init__(self, config: EngineConfig, running: Running) -> None:
        self._config = config
        self._running = running
        self._llm = running.llm
        self._library = running.library
        self._ids = count()
        #: What vLLM has measured of each request that runs; None before its first output.
        self._live: dict[str, Any] = {}
        self._closed = False
        self._barrier = Barrier(self._llm.is_sleeping)
        most = adapter_slots(config.lora) if config.lora is not None and running.device == "cpu" else None
        self._adapters = Adapters(self._llm, self._library.lora_request, self._mapped, config.lora, most)
        vllm_config = self._llm.vllm_config
        self._block_size = int(vllm_config.cache_config.block_size)
        self._prefix_caching = bool(vllm_config.cache_config.enable_prefix_caching)
        self._greedy_only = config.speculative is not None and versions.greedy_speculation_only(running.device)
        self._tables = versions.limited_sampler(vllm_config, running.device)
        check_taken(config, running.sent, vllm_config)
        self._capacity = capacity_tokens(config, vllm_config)
        self._info = self._describe()

    def _describe(self) -> BackendInfo:
        model = self._llm.vllm_config.model_config
        device = self._running.device
        vocab_size = int(model.get_vocab_size())
        return BackendInfo(
            capabilities=narrowed(
                self._config,
                device=device,
                vocab_size=vocab_size,
                prefix_caching=self._prefix_caching,
                chunked_prefill=bool(self._llm.vllm_config.scheduler_config.enable_chunked_prefill),
            ),
            max_model_len=int(model.max_model_len),
            vocab_size=vocab_size,
            max_num_seqs=max_num_seqs(self._config, self._llm.vllm_config),
            dtype=dtype_of(self._llm.vllm_config),
            device=str(self._library.platform.get_device_name()) if device == "cuda" else device,
        )

    async def prepare(self, model: ModelFiles) -> None:
        """Answer a first call, and load the adapters that were asked for."""
        # vLLM asks its core once and keeps the answer; asked for here, no request waits for it.
        await self._llm.get_supported_tasks()
        for name, folder in model.loras.items():
            await self._adapters.load(name, folder)
        self._info = replace(self._info, loras=self._adapters.names)

    @property
    def info(self) -> BackendInfo:
        return self._info

    # -- requests ---------------------------------------------------------------------------------

    def validate(self, request: TokenRequest) -> None:
        requests.check(request)
        if self._greedy_only and not request.sampling.greedy:
            raise UnsupportedParameter(
                "sampling.temperature: on a CPU vLLM verifies drafts at a wrong temperature unless it is 0; load "
                "without speculative to sample",
                field="sampling.temperature",
            )
        if self._tables:
            requests.check_tables(request)
        if request.structured is None:
            return
        config = self._llm.vllm_config
        try:
            # vLLM compiles the constraint to see whether it can: then a refusal comes before anything is submitted.
            requests.sampling_params(self._library, request, streaming=True).verify(
                config.model_config,
                config.speculative_config,
                config.structured_outputs_config,
                self._llm.tokenizer,
            )
        except Exception as error:
            field = f"structured.{request.structured.kind}"
            raise InvalidRequest(f"{field}: {error}", field=field) from error

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        # Not a generator around another: this is passed through for every token.
        return self._run(request, streaming=True)

    async def generate(self, request: TokenRequest) -> TokenDelta:
        deltas = [delta async for delta in self._run(request, streaming=False)]
        if not deltas or deltas[-1].finish is None:
            raise PluginError("vLLM ended a request without a final output")
        return deltas[-1]

    async def _run(self, request: TokenRequest, *, streaming: bool) -> AsyncIterator[TokenDelta]:
        if self._config.task != "generate":
            raise UnsupportedCapability("vllm was loaded to embed, not to generate", capability="generate")
        if self._closed:
            yield TokenDelta([], None, TokenFinish("abort"))
            return
        final: TokenDelta | None = None
        prompt_entries: Sequence[Any] | None = None
        prompt_wanted = request.prompt_logprobs is not None
        self._live[request.id] = None
        try:
            async for output in self._llm.generate(
                requests.prompt(request),
                requests.sampling_params(self._library, request, streaming=streaming),
                request.id,
                lora_request=self._adapters.find(request.lora),
                priority=request.priority,
            ):
                if prompt_wanted and prompt_entries is None:
                    prompt_entries = outputs.whole_prompt(output, request)
                if output.finished:
                    self._live.pop(request.id, None)
                    # Given after vLLM's own generator has ended: one that is left where it stands costs a task.
                    final = outputs.delta(output, request, prompt_entries)
                    continue
                if request.id in self._live:
                    self._live[request.id] = output.metrics
                yield outputs.delta(output, request, prompt_entries)
        except Exception as error:
            # Not where the reader was cancelled: vLLM aborts by itself then, and our `abort` waits until that is done.
            self._live.pop(request.id, None)
            raise self._mapped(error) from error
        if final is not None:
            yield final

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        # vLLM always generates a token, for which a full context has no room: so the last one is generated, by
        # allowing no other; its log-probability is the model's own all the same, read before anything is ruled out.
        *prompt, last = token_ids
        request = TokenRequest(
            id=f"score-{next(self._ids)}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0, allowed_token_ids=[last]),
            max_tokens=1,
            logprobs=logprobs,
            prompt_logprobs=logprobs,
        )
        try:
            delta = await self.generate(request)
        except asyncio.CancelledError:
            await despite_cancellation(self.abort(request.id))
            raise
        if delta.finish is None or delta.finish.prompt_logprobs is None or delta.logprobs is None:
            raise EngineClosed("vllm was closed while it scored")
        return Score(list(token_ids), [*delta.finish.prompt_logprobs, *delta.logprobs])

    async def embed(self, token_ids: Sequence[int]) -> Embedding:
        if self._config.task != "embed":
            raise UnsupportedCapability("vllm was loaded to generate, not to embed", capability="embed")
        request_id = f"embed-{next(self._ids)}"
        vector: list[float] = []
        try:
            async for output in self._llm.encode(
                {"type": "token", "prompt_token_ids": list(token_ids)},
                self._library.pooling_params(task="embed"),
                request_id,
            ):
                vector = output.outputs.data.float().tolist()
        except Exception as error:
            raise self._mapped(error) from error
        length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
        return Embedding([value / length for value in vector], list(token_ids))

    async def abort(self, request_id: str) -> None:
        if request_id not in self._live:
            return
        self._running.recorder.aborted(self._live.pop(request_id))
        try:
            await self._llm.abort(request_id)
            # The core handles its messages in order: once it answers the next one, the request is gone from it.
            await self._barrier.wait()
        except Exception as error:
            raise self._mapped(error) from error

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        recorder = self._running.recorder
        if recorder.busy and not self._live:
            # The report in which the last request is gone comes with the step after the one that answers.
            await self._reached_core()
            await self._reached_core()
        return recorder.snapshot(
            capacity_tokens=self._capacity,
            block_size=self._block_size,
            speculative=self._config.speculative is not None,
            prefix_caching=self._prefix_caching,
        )

    async def _reached_core(self) -> None:
        try:
            await self._barrier.wait()
        except Exception as error:
            raise self._mapped(error) from error

    async def health(self) -> None:
        try:
            await self._llm.check_health()
            # Through the core to every worker process: one of them that hangs is found as well.
            await self._llm.collective_rpc("check_health")
        except Exception as error:
            raise self._mapped(error) from error

    async def load_lora(self, name: str, path: Path) -> None:
        await self._adapters.load(name, path)

    async def unload_lora(self, name: str) -> None:
        await self._adapters.unload(name)

    async def reset_prefix_cache(self) -> None:
        try:
            if not await self._llm.reset_prefix_cache():
                # vLLM forgets nothing while blocks are in use, unless it may preempt: what runs is computed again.
                await self._llm.reset_prefix_cache(reset_running_requests=True)
        except Exception as error:
            raise self._mapped(error) from error

    async def sleep(self) -> None:
        if not self._info.capabilities.sleep:
            raise UnsupportedCapability("vLLM cannot sleep on this device", capability="sleep")
        try:
            await self._llm.sleep(level=1)
        except Exception as error:
            raise self._mapped(error) from error

    async def wake(self) -> None:
        if not self._info.capabilities.sleep:
            raise UnsupportedCapability("vLLM cannot sleep on this device", capability="sleep")
        try:
            await self._llm.wake_up()
        except Exception as error:
            raise self._mapped(error) from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        live, self._live = list(self._live), {}
        if live and not self._llm.errored:
            # Ends their streams; the core itself is ended next, so it need not answer.
            await self._llm.abort(live)
        await stop(self._running)

    def _mapped(self, error: Exception) -> AnyEngineError | Exception:
        """What is raised for what vLLM raised; a dead engine says what it logged last."""
        mapped = request_error(error)
        if isinstance(mapped, EngineDied):
            mapped.log_tail = tuple(self._running.log.lines()[-_LOG_TAIL:])
            codes = [process.exitcode for process in self._running.processes if process.exitcode is not None]
            mapped.exit_status = codes[0] if codes else None
        return mapped or error
