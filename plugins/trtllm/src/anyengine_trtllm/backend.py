"""TensorRT-LLM, loaded."""

from __future__ import annotations

import asyncio
import secrets
from itertools import count
from typing import TYPE_CHECKING, Any

from anyengine.backend import Backend, BackendInfo, TokenDelta, TokenRequest
from anyengine.backend.cancellation import despite_cancellation
from anyengine.backend.dtypes import own_dtype
from anyengine.backend.logits import row_logprobs
from anyengine.backend.model_config import text_config
from anyengine.errors import EngineClosed, EngineDied, InvalidConfig, PluginError, UnsupportedCapability
from anyengine.outputs import Score
from anyengine.request import SamplingParams
from msgspec.structs import replace

from anyengine_trtllm import request as requests
from anyengine_trtllm.adapter import widest
from anyengine_trtllm.arrived import check_cache
from anyengine_trtllm.capabilities import narrowed
from anyengine_trtllm.config import MAX_NUM_TOKENS, chunked_prefill, max_model_len, prefix_caching
from anyengine_trtllm.errors import mapped, request_error
from anyengine_trtllm.grammar import GrammarChecker
from anyengine_trtllm.live import LiveRequests
from anyengine_trtllm.lora import Adapters
from anyengine_trtllm.pytorch import stored_dtype
from anyengine_trtllm.reports import Reports
from anyengine_trtllm.startup import Running, start, stop, watch
from anyengine_trtllm.stats import Recorder
from anyengine_trtllm.switched_off import switched_off

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

__all__ = ["TrtllmBackend", "load_backend"]


async def load_backend(config: EngineConfig, model: ModelFiles) -> TrtllmBackend:
    """Bring TensorRT-LLM up, with the adapters that were asked for."""
    running = await start(config, model)
    try:
        backend = TrtllmBackend(config, model, running)
        await backend.check()
    except BaseException as error:
        await despite_cancellation(stop(running))
        found = request_error(error)
        if found is None or found is error:
            raise
        raise found from error
    return backend


class TrtllmBackend(Backend):
    """Token level face of ``LLM``, whose executor and workers are processes of their own.

    Made on the event loop that it serves.
    """

    def __init__(self, config: EngineConfig, model: ModelFiles, running: Running) -> None:
        self._config = config
        self._running = running
        self._llm = running.llm
        self._ids = count()
        self._closed = False
        self._recorder = Recorder()
        options = running.options
        off = switched_off(config, model, options, running.library)
        self._prefix_caching = prefix_caching(config, off)
        events = bool(options.kv_cache.get("event_buffer_max_size")) and self._prefix_caching
        self._reports = None if options.tensorrt else Reports(self._llm, self._recorder, events=events)
        # A built engine counts none, and its results say 0.
        self._live = LiveRequests(self._recorder, cached_tokens=self._prefix_caching and not options.tensorrt)
        modules = widest(model.loras)[1] if model.loras else frozenset[str]()
        self._gone: EngineDied | None = None
        self._scoring: set[asyncio.Task[Any]] = set()
        watch(self._llm, self._died)
        self._adapters = Adapters(running.library.lora_request, config.lora, modules)
        for name, folder in model.loras.items():
            self._adapters.load(name, folder)
        length = max_model_len(config, model)
        length = min(length, running.limits.get("max_seq_len", length))
        step = running.limits.get("max_num_tokens") or config.scheduling.max_num_batched_tokens or MAX_NUM_TOKENS
        self._longest_prompt = None if chunked_prefill(config, length, step, off) else step
        self._info = self._describe(model, length)
        self._grammars = None
        if self._info.capabilities.structured:
            file = model.tokenizer_path / "tokenizer.json"
            self._grammars = GrammarChecker(file, self._info.vocab_size, model.eos_token_ids)

    def _describe(self, model: ModelFiles, length: int) -> BackendInfo:
        config, options = self._config, self._running.options
        vocab_size: Any = text_config(model.config).get("vocab_size")
        if not isinstance(vocab_size, int):
            raise InvalidConfig("model: its config.json does not say how large the vocabulary is", field="model")
        own = own_dtype(model.config) if options.tensorrt else stored_dtype(model)
        return BackendInfo(
            capabilities=narrowed(config, options, model, vocab_size=vocab_size, prefix_caching=self._prefix_caching),
            max_model_len=length,
            vocab_size=vocab_size,
            max_num_seqs=config.scheduling.max_num_seqs,
            dtype=own if config.dtype == "auto" and own is not None else config.dtype,
            device="cuda",
            loras=self._adapters.names,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def check(self) -> None:
        """Let it generate one token, and hold what it reports against what was asked for.

        A built engine does not report; and a context of one token has no room for a prompt and an answer.

        Raises:
            UnsupportedParameter, InvalidConfig, OutOfMemory: names the field.
        """
        if self._reports is None or self._info.max_model_len == 1:
            return
        # A salt of its own: nothing that is asked later finds this in the cache.
        await self._send(_one_token("first", [0], secrets.token_hex(8)), streaming=False).aresult()
        first = await self._reports.first()
        if first is not None:
            self._recorder.start(first)
            length = check_cache(self._config, self._info.max_model_len, first["kvCacheStats"])
            self._info = replace(self._info, max_model_len=length)

    # -- requests ---------------------------------------------------------------------------------

    def validate(self, request: TokenRequest) -> None:
        requests.check(request, self._running.options, longest_prompt=self._longest_prompt)
        if request.structured is not None and self._grammars is not None:
            self._grammars.check(request.structured, requests.structured(self._running.library, request.structured))

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        # Logits are asked for whole: what a streamed result has of them is nowhere documented.
        streaming = not _wants_logits(request)
        collector = self._live.begin(request, lambda: self._send(request, streaming=streaming), streaming=streaming)
        self._follow()
        return collector

    def _follow(self) -> None:
        if self._reports is not None:
            self._reports.follow(self._live.__len__)

    def _send(self, request: TokenRequest, *, streaming: bool, score: bool = False) -> Any:
        """Hand a request over; returns at once, with what will be its result."""
        salt = request.cache_salt
        if score or request.prompt_logprobs is not None:
            # What comes out of the prefix cache has no logits; nothing was ever cached under a salt of its own.
            salt = secrets.token_hex(8)
        return self._llm.generate_async(
            request.prompt_token_ids,
            sampling_params=requests.sampling_params(
                self._running.library,
                request,
                self._running.options,
                vocab_size=self._info.vocab_size,
                logits=score,
            ),
            lora_request=self._adapters.find(request.lora),
            streaming=streaming,
            cache_salt=salt,
        )

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        # TensorRT-LLM always generates a token, for which a full context has no room. The logits that predict the last
        # one are those of the token before it: so it is left out of the prompt.
        *prompt, last = token_ids
        request = _one_token(f"score-{next(self._ids)}", prompt)
        if self._closed:
            raise EngineClosed("trtllm was closed before it could score")
        if self._gone is not None:
            raise self._gone
        if self._longest_prompt is not None:
            requests.check(request, self._running.options, longest_prompt=self._longest_prompt)
        try:
            result = self._send(request, streaming=False, score=True)
            self._follow()
            waiting = asyncio.ensure_future(result.aresult())
            self._scoring.add(waiting)
            try:
                done = await waiting
            except asyncio.CancelledError:
                if self._gone is not None:
                    raise self._gone from None
                result.abort()
                raise
            finally:
                self._scoring.discard(waiting)
        except Exception as error:
            raise mapped(error) from error
        rows = done.context_logits
        if rows is None or len(rows) != len(prompt):
            given = "no logits" if rows is None else f"{len(rows)} rows of logits"
            raise PluginError(f"TensorRT-LLM returned {given} for {len(prompt)} prompt tokens")
        entries = await asyncio.to_thread(row_logprobs, rows, [*prompt[1:], last], logprobs)
        return Score(list(token_ids), [None, *entries])

    async def abort(self, request_id: str) -> None:
        await self._live.abort(request_id)

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        if self._reports is not None and not self._closed:
            await self._reports.read()
        return self._recorder.snapshot(
            live=len(self._live),
            reported=self._reports is not None,
            speculative=self._running.options.speculates,
            prefix_caching=self._prefix_caching,
        )

    def _died(self, why: str) -> None:
        if self._closed:
            return
        self._gone = EngineDied(f"a process of TensorRT-LLM's executor has ended: {why}")
        self._live.died(self._gone)
        for waiting in self._scoring:
            waiting.cancel()

    async def health(self) -> None:
        if self._gone is not None:
            raise self._gone
        # Private, and what TensorRT-LLM's own server asks: there is no public way.
        if not await asyncio.to_thread(self._llm._check_health):  # noqa: SLF001
            raise EngineDied("the executor of TensorRT-LLM is gone or shut down; its log says why")

    async def load_lora(self, name: str, path: Path) -> None:
        self._adapters.load(name, path)

    async def unload_lora(self, name: str) -> None:
        self._adapters.unload(name)

    async def sleep(self) -> None:
        raise UnsupportedCapability("TensorRT-LLM's LLM cannot sleep", capability="sleep")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._reports is not None:
            self._reports.close()
        await self._live.close()
        await stop(self._running)


def _one_token(name: str, prompt: list[int], salt: str | None = None) -> TokenRequest:
    """The request for the most likely next token."""
    return TokenRequest(
        id=name, prompt_token_ids=prompt, sampling=SamplingParams(temperature=0), max_tokens=1, cache_salt=salt
    )


def _wants_logits(request: TokenRequest) -> bool:
    return request.logprobs is not None or request.prompt_logprobs is not None
