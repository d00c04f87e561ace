"""The TurboMind backend."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine.errors import InvalidRequest

from lmdeploy.messages import EngineOutput, ResponseType
from lmdeploy.turbomind.supported_models import is_supported

from .backends import BackendEngine
from .executor import Executor
from .facts import SimulationError, limit
from .grammar import TooComplexError
from .handles import Handle
from .sampling import TurbomindSampler
from .tensor import tensor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["TurboMind", "TurboMindInstance"]

logger = logging.getLogger("lmdeploy")


class TurboMindInstance(Handle):
    """A handle of TurboMind."""

    _running: Any = None

    async def async_cancel(self, session_id: int | None = None) -> None:
        """End the request that runs; of one that is yet to begin nothing is remembered."""
        if self._running is not None:
            self._running.cancel()

    async def async_end(self, session_id: int) -> None:
        """There is nothing to end."""

    async def async_stream_infer(
        self,
        session_id: int,
        input_ids: list[int],
        input_embeddings: Any = None,
        input_embedding_ranges: Any = None,
        multimodal: Any = None,
        gen_config: Any = None,
        stream_output: bool = False,  # noqa: FBT001, FBT002 as LMDeploy has it
        **kwargs: Any,
    ) -> AsyncGenerator[Any]:
        """Outputs of a request; cancelled, it waits for the end and says nothing of it."""
        self._claim()
        try:
            if kwargs.get("adapter_name") is not None:
                raise SimulationError("TurboMind has no adapters: the name is ignored")
            status = self._engine.refusal(input_ids)
            if status is not None:
                yield EngineOutput(status, [])
                return
            async with aclosing(self._run(session_id, input_ids, gen_config, stream_output=stream_output)) as outputs:
                async for output in outputs:
                    yield output
        except (TooComplexError, InvalidRequest):
            yield EngineOutput(ResponseType.INTERNAL_ENGINE_ERROR, [])
        finally:
            self._release()

    async def _run(self, session: int, prompt: list[int], config: Any, *, stream_output: bool) -> AsyncGenerator[Any]:
        running = self._running = self._engine.submit(session, prompt, config)
        generated = 0
        try:
            while running.finish is None:
                tokens = (await running.next()).token_ids
                while running.finish is None and not stream_output:
                    tokens = tokens + (await running.next()).token_ids
                if running.finish is not None and tokens and session % 2:
                    # The last token and the end may be seen at different times.
                    yield self._output(running, config, ResponseType.SUCCESS, tokens, generated)
                    generated, tokens = generated + len(tokens), []
                if tokens or running.finish is not None:
                    yield self._output(running, config, self._status(running), tokens, generated)
                    generated += len(tokens)
        except (GeneratorExit, asyncio.CancelledError):
            # As there: neither is raised again.
            running.cancel()
        finally:
            await running.end()
            self._running = None
            self._engine.live.pop(session)

    def _status(self, running: Any) -> Any:
        if running.finish is None:
            return ResponseType.SUCCESS
        return ResponseType.CANCEL if running.finish.reason == "abort" else ResponseType.FINISH

    def _output(self, running: Any, config: Any, status: Any, tokens: list[int], generated: int) -> Any:
        """One output; ``generated`` tokens were in those before it."""
        output = EngineOutput(status, tokens)
        end = generated + len(tokens)
        if config.output_logits:
            # All rows so far, every time.
            rows = running.sampler.rows[:end]
            if config.output_logits == "all":
                prompt = running.sequence.tokens[: running.sequence.prompt_length]
                before = self._engine.executor.logits(prompt)[:-1]
                # Of what came out of the cache nothing was computed.
                before[: running.sequence.cached_tokens or 0] = np.nan
                rows = [*before, *rows]
            output.logits = tensor(np.stack(rows)) if rows else None
        if config.logprobs:
            kept = running.sampler.kept[generated:end]
            output.logprobs = [_top(all_, config.logprobs, token) for all_, token in zip(kept, tokens, strict=True)]
        if self._engine.engine_config.enable_metrics:
            output.req_metrics = self._metrics(running, first=generated == 0)
        return output


def _top(kept: dict[int, float], count: int, token: int) -> dict[int, float]:
    best = dict(list(kept.items())[:count])
    return best if token in best else best | {token: kept[token]}


class TurboMind(BackendEngine):
    """TurboMind's engine. It has no loop to start."""

    handle = TurboMindInstance

    def _make_executor(self) -> Executor:
        config = self.engine_config
        assert is_supported(str(self.folder)), f"turbomind does not support {self.folder}"
        if config.model_format not in (None, *limit("model_formats_turbomind")):
            raise ValueError(f"unknown model_format: {config.model_format!r}")
        if config.model_format not in (None, "hf") and "quantization_config" not in self.hf_config:
            raise KeyError(f"no tensors of {config.model_format}: TurboMind quantises nothing while it loads")
        config.dtype = self.dtype
        share = config.cache_max_entry_count
        if share >= 1:
            raise SimulationError("of 1 or more, TurboMind made no number of blocks on a GPU")
        executor = Executor(
            self.folder,
            block_size=config.cache_block_seq_len,
            blocks=None,
            share=share,
            limits=self._limits(),
        )
        # Not read: shorter where the cache holds less than a session.
        self.session_len = min(config.session_len, executor.blocks * executor.block_size)
        return executor

    def refusal(self, prompt: list[int]) -> Any:
        """The status that a request ends with before it begins, None if it begins."""
        if self.failures:
            return self.failures.popleft()
        return ResponseType.INPUT_LENGTH_ERROR if len(prompt) >= self.session_len else None

    def submit(self, session_id: int, prompt: list[int], config: Any) -> Any:
        """Hand a request over."""
        if self.closed:
            raise SimulationError("TurboMind is closed: a request hangs, or ends the process")
        if config.min_new_tokens:
            raise SimulationError("min_new_tokens ends TurboMind where requests of a batch have other stop tokens")
        if config.logits_processors or config.logprob_start_len >= 0:
            raise SimulationError("TurboMind ignores logits_processors and logprob_start_len")
        if config.response_format is not None:
            try:
                constraint = self.compiler.compile(config.response_format)
            except (ValueError, KeyError, RuntimeError) as error:
                logger.warning("guided decoding is off: %s", error)
                config.response_format = constraint = None
        else:
            constraint = None
        running = self.executor.submit(
            prompt,
            lambda request, vocab_size: TurbomindSampler(request, vocab_size, config),
            # Not read: what is beyond the session is cut off.
            max_tokens=min(config.max_new_tokens, self.session_len - len(prompt)),
            stops=[] if config.ignore_eos else config.stop_token_ids or [],
            constraint=constraint,
        )
        self.begin(session_id, running)
        return running

    async def sleep(self, level: int = 1) -> None:
        """Its native library of this release lacks what this calls."""
        raise AttributeError("sleep")

    def wakeup(self, tags: list[str] | None = None) -> None:
        """The same."""
        raise AttributeError("wakeup")

    def close(self) -> None:
        """End it."""
        if self.live:
            raise SimulationError("TurboMind was closed under requests that run")
        self.closed = True
        self.executor.stop()
