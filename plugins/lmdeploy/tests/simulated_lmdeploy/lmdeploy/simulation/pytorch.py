"""The PyTorch backend."""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidRequest

from lmdeploy.messages import EngineOutput, ResponseType

from .backends import BackendEngine
from .cache import make_cache_config
from .executor import Executor
from .facts import FACTS, SimulationError
from .grammar import TooComplexError
from .handles import Handle
from .sampling import PytorchSampler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Engine", "EngineInstance"]

logger = logging.getLogger("lmdeploy")

#: Of the cache; fewer do not pass the checks before a load.
_FEWEST_BLOCKS = 16


class EngineInstance(Handle):
    """A handle of the PyTorch backend. It streams, whatever ``stream_output`` says."""

    async def async_cancel(self, session_id: int) -> None:
        """End a session's request; of one that is yet to begin nothing is remembered."""
        running = self._engine.live.get(session_id)
        if running is None:
            logger.warning("Failed to cancel session: %s", session_id)
        else:
            await self._engine.executor.abort(running._number)

    async def async_end(self, session_id: int) -> None:
        """End a session."""
        running = self._engine.live.pop(session_id, None)
        if running is not None:
            await running.end()

    async def async_stream_infer(
        self,
        session_id: int,
        input_ids: list[int],
        gen_config: Any = None,
        multimodal: Any = None,
        adapter_name: str | None = None,
        notify_add_msg_func: Any = None,
        **kwargs: Any,
    ) -> AsyncGenerator[Any]:
        """Outputs of a request."""
        self._claim()
        try:
            status = self._engine.refusal(input_ids)
            if status is not None:
                yield EngineOutput(status, [])
                return
            try:
                running = self._engine.submit(session_id, input_ids, gen_config, adapter_name)
                async with aclosing(self._read(session_id, running, gen_config)) as outputs:
                    async for output in outputs:
                        yield output
            except TooComplexError:
                yield EngineOutput(ResponseType.INTERNAL_ENGINE_ERROR, [])
            finally:
                await self.async_end(session_id)
        finally:
            self._release()

    async def _read(self, session_id: int, running: Any, config: Any) -> AsyncGenerator[Any]:
        first = True
        while running.finish is None:
            try:
                delta = await running.next()
            except InvalidRequest:  # llguidance's limits, once more
                yield EngineOutput(ResponseType.INTERNAL_ENGINE_ERROR, [])
                return
            except Exception as error:  # noqa: BLE001 what one request does, all hear of
                if not self._engine.closed:
                    self._engine.die(error)
                yield EngineOutput(ResponseType.ENGINE_STOP_ERROR, [])
                return
            finish = running.finish
            logprobs = _logprobs(delta, config)
            spec_info = None
            if self._engine.drafted and not first:
                accepted = min(len(delta.token_ids) - 1, self._engine.drafted)
                spec_info = {"num_draft_tokens": self._engine.drafted, "num_accepted_tokens": max(accepted, 0)}
            metrics = self._metrics(running, first=True, spec_info=spec_info)
            if self._engine.closed:
                yield EngineOutput(ResponseType.ENGINE_STOP_ERROR, [])
                return
            if finish is not None and delta.token_ids and session_id % 2:
                yield EngineOutput(ResponseType.SUCCESS, delta.token_ids, logprobs, req_metrics=metrics)
                delta.token_ids, logprobs = [], None
            status = ResponseType.SUCCESS
            if finish is not None:
                status = ResponseType.CANCEL if finish.reason == "abort" else ResponseType.FINISH
            yield EngineOutput(status, delta.token_ids, logprobs, req_metrics=metrics)
            first = False


def _logprobs(delta: Any, config: Any) -> list[dict[int, float]] | None:
    """Of the tokens, or of the prompt; the chosen one comes first."""
    entries = delta.logprobs
    if delta.finish is not None and delta.finish.prompt_logprobs is not None:
        entries = delta.finish.prompt_logprobs[config.logprob_start_len + 1 :]
    return None if entries is None else [{entry.token_id: entry.logprob} | entry.top for entry in entries]


class Engine(BackendEngine):
    """The PyTorch backend's engine; bound to the loop that it was started on."""

    handle = EngineInstance

    def __init__(self, model_path: str, engine_config: Any, speculative_config: Any = None) -> None:
        self._speculation = speculative_config
        self.drafted = 0
        if speculative_config is not None:
            if speculative_config.method not in FACTS["speculative_methods"]:
                raise ValueError(f"{speculative_config.method} is not registered")
            self.drafted = speculative_config.num_speculative_tokens
        self.started = self.blocked = False
        super().__init__(model_path, engine_config)
        for name, folder in (self.engine_config.adapters or {}).items():
            if not (Path(folder) / "adapter_config.json").is_file():
                raise OSError(f"{name}: {folder} is no adapter")

    def _make_executor(self) -> Executor:
        config = self.engine_config
        if config.model_format is not None:
            raise SimulationError("no model of the tests has the widths that fp8 needs")
        if 0 < config.num_gpu_blocks < _FEWEST_BLOCKS:
            raise ValueError(f"num_gpu_blocks is {config.num_gpu_blocks}")
        cache = self.cache_config = make_cache_config(config, self.hf_config)
        reserved = cache.num_reserved_gpu_blocks
        draft = self._speculation.model if self._speculation is not None else None
        executor = Executor(
            self.folder,
            block_size=cache.block_size,
            blocks=cache.num_gpu_blocks - reserved if cache.num_gpu_blocks else None,
            share=config.cache_max_entry_count,
            limits=replace(
                self._limits(self.drafted),
                max_num_batched_tokens=cache.max_prefill_token_num,
                prefix_caching=cache.enable_prefix_caching,
            ),
            # Proposers of these methods are no models of their own; the simulated one is.
            draft=Path(draft) if draft else None,
        )
        config.num_gpu_blocks = cache.num_gpu_blocks = executor.blocks + reserved
        self.model_config = SimpleNamespace(dtype=f"torch.{self.dtype}")
        self.max_session_len = cache.longest(config.session_len)
        return executor

    def start_loop(self) -> bool:
        """Start."""
        self.started = True
        return True

    def refusal(self, prompt: list[int]) -> Any:
        """The status that a request ends with before it begins, None if it begins."""
        if not self.started:
            raise SimulationError("the loop of the PyTorch backend was not started")
        if self.failures:
            return self.failures.popleft()
        if self.closed:
            return ResponseType.ENGINE_STOP_ERROR
        if self.blocked:
            return ResponseType.CANCEL
        return ResponseType.INPUT_LENGTH_ERROR if len(prompt) > self.max_session_len else None

    def submit(self, session_id: int, prompt: list[int], config: Any, adapter_name: str | None) -> Any:
        """Hand a request over."""
        if config.output_logits:
            raise SimulationError("the PyTorch backend drops output_logits, with a warning")
        adapters = self.engine_config.adapters or {}
        if adapter_name is not None and adapter_name not in adapters:
            raise self.die(KeyError(adapter_name))
        constraint = None
        if config.response_format is not None:
            try:
                constraint = self.compiler.compile(config.response_format)
            except TooComplexError:
                raise
            except Exception as error:
                raise self.die(error) from error
        most = config.max_new_tokens
        if most + len(prompt) > self.max_session_len:
            most = self.max_session_len - len(prompt)
            logger.warning("num tokens is larger than max session len. Update max_new_tokens=%d.", most)
        scoring = config.logprob_start_len >= 0
        if scoring != (config.max_new_tokens == 0):
            raise SimulationError("log-probabilities of the prompt and tokens after it exclude each other")
        count = config.logprobs if config.logprobs is not None and self.engine_config.logprobs_mode else -1
        if count >= 0 and self.engine_config.logprobs_mode != "raw_logprobs":
            raise SimulationError("raw logits instead of log-probabilities are not simulated")
        made: list[PytorchSampler] = []

        def make(request: Any, vocab_size: int) -> PytorchSampler:
            made.append(PytorchSampler(request, vocab_size, config))
            return made[0]

        running = self.executor.submit(
            prompt,
            make,
            max_tokens=most,
            stops=[] if config.ignore_eos else config.stop_token_ids or [],
            constraint=constraint,
            # For tokens that are generated, 0 is none at all (lmdeploy/pytorch/engine/engine_loop.py:399).
            logprobs=count if count > 0 or (scoring and count == 0) else None,
            scoring=scoring,
        )
        self.begin(session_id, running)
        return running

    def die(self, error: Exception) -> Exception:
        """What raises in the engine's loop ends it, for every request."""
        logger.error("Engine main loop failed: %s", error)
        self.closed = True
        for running in self.live.values():
            running.cancel()
        return error

    async def sleep(self, level: int = 1) -> None:
        """Refuse requests, cancel those that run, free what the device holds."""
        self.blocked = True
        for running in list(self.live.values()):
            await self.executor.abort(running._number)

    def wakeup(self, tags: list[str] | None = None) -> None:
        """Take requests again."""
        self.blocked = False

    def close(self) -> None:
        """End it: requests that run hear of it within a second."""
        self.closed = True
        self.executor.stop()

    async def wait_tasks(self) -> None:
        """Wait for the loop's end."""
