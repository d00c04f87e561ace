"""A simulated engine: every request is answered with the tokens of a script, one a step."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from anyengine.backend import (
    Backend,
    BackendInfo,
    DeltaCollector,
    EngineDescription,
    EnginePlugin,
    TokenDelta,
    TokenFinish,
)
from anyengine.capabilities import Capabilities
from anyengine.outputs import Score, TokenLogprobs
from anyengine.request import SamplingParams
from anyengine.stats import EngineStats, KVCacheStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from anyengine.backend import TokenRequest
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles

__all__ = ["ScriptedBackend", "ScriptedPlugin", "all_capabilities"]

_LOGPROB = -0.5


def all_capabilities() -> Capabilities:
    """Everything declared: a script honours any parameter by saying what its author wrote."""
    return Capabilities(
        config=frozenset({"max_model_len", "scheduling.max_num_seqs", "seed"}),
        sampling=frozenset(SamplingParams.model_fields),
        request=frozenset({"min_tokens", "stop_token_ids", "ignore_eos", "priority", "cache_salt"}),
        token_prompts=True,
        logprobs="raw",
        prompt_logprobs="raw",
        max_logprobs=5,
        score=True,
        structured=frozenset({"json_schema", "regex", "grammar", "choice"}),
    )


class ScriptedPlugin(EnginePlugin):
    """The plugin of the simulated engine.

    Args:
        script: what a request is answered with: token ids, endless or not. A script that ends is followed by the
            model's first end-of-sequence token, or with ``ignore_eos`` by ``0`` until ``max_tokens``.
        model: folder of the default model (see ``make_model_folder``).
        step_seconds: time between steps; 0 gives other tasks one turn.
        capabilities: to declare.
        max_model_len: context in tokens.
        name: of the engine.
    """

    def __init__(
        self,
        script: Callable[[TokenRequest], Iterable[int]],
        model: str,
        *,
        step_seconds: float = 0.0,
        capabilities: Capabilities | None = None,
        max_model_len: int = 4096,
        name: str = "scripted",
    ) -> None:
        self.script = script
        self.model = model
        self.step_seconds = step_seconds
        self.capabilities = capabilities or all_capabilities()
        self.max_model_len = max_model_len
        self.name = name
        self.loaded: list[ScriptedBackend] = []

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=self.name,
            plugin_version="0",
            in_process=True,
            capabilities=self.capabilities,
            models={"scripted": self.model},
            default_model="scripted",
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> ScriptedBackend:
        info = BackendInfo(
            capabilities=self.capabilities,
            max_model_len=config.max_model_len or self.max_model_len,
            vocab_size=model.config["vocab_size"],
            max_num_seqs=config.scheduling.max_num_seqs,
        )
        backend = ScriptedBackend(info, self.script, self.step_seconds)
        self.loaded.append(backend)
        return backend


class _Sequence:
    __slots__ = ("collector", "left", "request", "tokens")

    def __init__(self, request: TokenRequest, tokens: Iterator[int]) -> None:
        self.request = request
        self.tokens = tokens
        self.collector = DeltaCollector()
        self.left = request.max_tokens


class ScriptedBackend(Backend):
    """The simulated engine, loaded.

    Attributes:
        requests: every request that arrived, in order.
        aborted: ids that were aborted while they ran.
    """

    def __init__(self, info: BackendInfo, script: Callable[[TokenRequest], Iterable[int]], step_seconds: float) -> None:
        self._info = info
        self._script = script
        self._step_seconds = step_seconds
        self._running: dict[str, _Sequence] = {}
        self._stepper: asyncio.Task[None] | None = None
        self.requests: list[TokenRequest] = []
        self.aborted: list[str] = []

    @property
    def info(self) -> BackendInfo:
        return self._info

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        self.requests.append(request)
        terminator = sorted(request.eos_token_ids)[:1]
        script = itertools.chain(self._script(request), itertools.cycle(terminator or [0]))
        sequence = self._running[request.id] = _Sequence(request, script)
        if self._stepper is None or self._stepper.done():
            self._stepper = asyncio.create_task(self._steps())
        return sequence.collector

    async def _steps(self) -> None:
        """One token for each sequence a step.

        Steps go by the clock, as an engine's in a thread of its own do: while the loop is busy with the readers, more
        of them fall due, and their tokens come together.
        """
        loop = asyncio.get_running_loop()
        started, done = loop.time(), 0
        while self._running:
            await asyncio.sleep(self._step_seconds)
            due = int((loop.time() - started) / self._step_seconds) if self._step_seconds else done + 1
            for sequence in list(self._running.values()):
                self._advance(sequence, due - done)
            done = due

    def _advance(self, sequence: _Sequence, steps: int) -> None:
        request = sequence.request
        terminators = request.terminators
        token_ids: list[int] = []
        reason = None
        for token in itertools.islice(sequence.tokens, steps):
            token_ids.append(token)
            sequence.left -= 1
            reason = "stop" if token in terminators else "length" if not sequence.left else None
            if reason is not None:
                break
        if not token_ids:
            return
        delta = TokenDelta(token_ids)
        if request.logprobs is not None:
            delta.logprobs = [TokenLogprobs(token, _LOGPROB, {token: _LOGPROB}) for token in token_ids]
        if reason is not None:
            delta.finish = self._finish(request, reason)
            del self._running[request.id]
        sequence.collector.put(delta)

    def _finish(self, request: TokenRequest, reason: str) -> TokenFinish:
        prompt_logprobs = None if request.prompt_logprobs is None else _entries(request.prompt_token_ids)
        return TokenFinish(reason, cached_tokens=0, prompt_logprobs=prompt_logprobs)  # pyright: ignore[reportArgumentType] one of three literals

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        del logprobs  # every token is as likely as the script says
        return Score(list(token_ids), _entries(token_ids))

    async def abort(self, request_id: str) -> None:
        sequence = self._running.pop(request_id, None)
        if sequence is not None:
            self.aborted.append(request_id)
            sequence.collector.put(TokenDelta([], finish=self._finish(sequence.request, "abort")))

    async def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running), waiting=0, kv_cache=KVCacheStats())

    async def close(self) -> None:
        for request_id in list(self._running):
            await self.abort(request_id)
        if self._stepper is not None:
            self._stepper.cancel()
            await asyncio.wait([self._stepper])


def _entries(token_ids: Sequence[int]) -> list[TokenLogprobs | None]:
    return [None, *(TokenLogprobs(token, _LOGPROB, {token: _LOGPROB}) for token in token_ids[1:])]
