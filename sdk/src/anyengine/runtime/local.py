"""The runtime of an engine that lives in this process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from anyengine._concurrency import Once
from anyengine.errors import (
    EngineClosed,
    InvalidRequest,
    PluginError,
    UnsupportedCapability,
)
from anyengine.hub.resolve import resolve_adapter
from anyengine.outputs import Embedding, Score
from anyengine.runtime.admission import Admission
from anyengine.runtime.base import Prepared, Runtime
from anyengine.runtime.checks import check_request, check_vocabulary, switched_on
from anyengine.runtime.choice import ChoiceStream
from anyengine.runtime.contract import broken, cancelled_itself, cause, check_types, mapped
from anyengine.runtime.fanout import FanOut, run_all
from anyengine.runtime.resolve import how_to_fit, numbered, resolve
from anyengine.stats import EngineStats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from anyengine.backend import Backend, BackendInfo, TokenRequest
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Completion
    from anyengine.plugins import EngineManager
    from anyengine.request import GenerateRequest, Message, Prompt
    from anyengine.runtime.base import ChunkStream
    from anyengine.text.tokenizer import TextTokenizer

__all__ = ["LocalRuntime"]

T = TypeVar("T")

#: Texts longer than this are tokenised in a thread: below it the hop costs more than it saves.
_LONG_TEXT = 20_000
#: A score needs a token and one before it.
_MIN_SCORED = 2
#: Sequences handed over to an engine that does not say how many it runs.
_DEFAULT_CONCURRENCY = 256


class LocalRuntime(Runtime):
    """Text layer and admission in front of a loaded backend, on the caller's asyncio loop."""

    def __init__(
        self,
        name: str,
        config: EngineConfig,
        model: ModelFiles,
        tokenizer: TextTokenizer,
        manager: EngineManager,
        backend: Backend,
        weights: Sequence[str],
    ) -> None:
        self._name = name
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self._hooks: Any = manager.hook
        self._info = backend.info
        self._weights = weights
        self._configured = switched_on("config.", config)
        # Twice what runs, so that the engine always finds its next request waiting.
        self._concurrency = 2 * (self._info.max_num_seqs or _DEFAULT_CONCURRENCY)
        self._admission = Admission(self._concurrency, config.scheduling.max_queued_requests, name)
        self._ids = count()
        self._closed = False
        self._release = Once(lambda: self._guard(self._hooks.close, object))

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def concurrency(self) -> int:
        return self._concurrency

    @property
    def busy(self) -> bool:
        """Whether a sequence is in the engine."""
        return self._admission.running > 0

    @property
    def health_timeout(self) -> float:
        """Seconds within which the engine has to say that it works, and to end what was aborted."""
        return self._config.health_timeout

    # -- requests ---------------------------------------------------------------------------------

    async def prepare(self, request: GenerateRequest, flow: int, *, admitted: bool = False) -> Prepared:
        self._check_open()
        called = monotonic()
        if self._config.task != "generate":
            raise UnsupportedCapability(
                f"{self._name} was loaded with task={self._config.task!r}; it does not generate",
                capability="generate",
                engine=self._name,
            )
        check_request(self._name, self._info, self._configured, request)
        text, token_ids = await self._prompt(request)
        id_ = f"{self._name}-{next(self._ids)}"
        tokens = resolve(
            self._name, self._config, self._info, self._model, self._tokenizer, request, text, token_ids, id_
        )
        check_vocabulary(self._name, self._info.vocab_size, tokens)
        self._validate(tokens)
        return Prepared(request, (tokens, called), flow, admitted)

    def _validate(self, tokens: TokenRequest) -> None:
        try:
            self._hooks.validate(request=tokens)
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise mapped(error, self._name) from cause(error)

    async def _prompt(self, request: GenerateRequest) -> tuple[str | None, list[int]]:
        """The prompt as text, if there is one, and as tokens."""
        if request.messages is not None:
            text = await self.apply_chat_template(request.messages, request.chat_template_kwargs)
            return text, await self._encode(text, add_special_tokens=False)
        if isinstance(request.prompt, str):
            return request.prompt, await self._encode(request.prompt, add_special_tokens=True)
        return None, list(request.prompt or ())

    async def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def forget(self, prepared: Prepared) -> None:
        """Nothing is kept here."""

    @asynccontextmanager
    async def admit(self, count: int) -> AsyncGenerator[None]:
        self._check_open()
        self._admission.reserve(count)
        try:
            yield
        finally:
            self._admission.give_back(count)

    def _choices(self, prepared: Prepared) -> list[ChoiceStream]:
        self._check_open()
        tokens, called = prepared.payload
        request = prepared.request
        name = f"{self._name}-{next(self._ids)}"  # a wrapper may submit a request twice, to try again
        choices = [
            ChoiceStream(
                request=request,
                tokens=numbered(tokens, name, index, request.n),
                index=index,
                hooks=self._hooks,
                engine=self._name,
                admission=self._admission,
                flow=prepared.flow,
                reserved=not prepared.admitted,
                table=self._tokenizer.table,
                called=called,
                patience=self.health_timeout,
            )
            for index in range(request.n)
        ]
        if not prepared.admitted:
            self._admission.reserve(request.n)
        return choices

    async def stream(self, request: GenerateRequest, flow: int) -> ChunkStream:
        choices = self._choices(await self.prepare(request, flow))
        return choices[0] if len(choices) == 1 else FanOut(choices)

    async def run(self, prepared: Prepared) -> Completion:
        return await run_all(self._choices(prepared))

    async def generate(self, request: GenerateRequest, flow: int) -> Completion:
        return await self.run(await self.prepare(request, flow))

    # -- text and scores --------------------------------------------------------------------------

    async def score(self, prompt: Prompt, logprobs: int) -> Score:
        self._check_open()
        self._require("score", "cannot score")
        most = self._info.capabilities.most_prompt_logprobs
        if not 0 <= logprobs <= most:
            raise InvalidRequest(
                f"logprobs: must be 0 to {most}, not {logprobs}",
                engine=self._name,
                field="logprobs",
            )
        token_ids = await self._whole_text(prompt, "scoring", _MIN_SCORED)
        score = await self._guard(lambda: self._hooks.score(token_ids=token_ids, logprobs=logprobs), Score)
        if score.token_ids != token_ids or len(score.entries) != len(token_ids):
            raise PluginError(
                f"{self._name} scored {len(score.entries)} tokens of {len(token_ids)}, or others than were asked for",
                engine=self._name,
            )
        return score

    async def _whole_text(self, prompt: Prompt, use: str, least: int) -> list[int]:
        """The tokens of a text that is read, not continued."""
        token_ids = await self.tokenize(prompt, add_special_tokens=True, template={})
        if not least <= len(token_ids) <= self._info.max_model_len:
            advice = f"; {how_to_fit(self._config, self._info, self._model)}" if len(token_ids) >= least else ""
            raise InvalidRequest(
                f"prompt: has {len(token_ids)} tokens; {use} needs {least} to {self._info.max_model_len}{advice}",
                engine=self._name,
                field="prompt",
            )
        if max(token_ids) >= self._info.vocab_size or min(token_ids) < 0:
            raise InvalidRequest(
                f"prompt: token ids must be 0 to {self._info.vocab_size - 1}", engine=self._name, field="prompt"
            )
        return token_ids

    async def embed(self, prompt: Prompt) -> Embedding:
        self._check_open()
        self._require("embed", "cannot embed")
        if self._config.task != "embed":
            raise UnsupportedCapability(
                f"{self._name} was loaded to generate; load it with task='embed'",
                capability="embed",
                engine=self._name,
            )
        token_ids = await self._whole_text(prompt, "embedding", 1)
        return await self._guard(lambda: self._hooks.embed(token_ids=token_ids), Embedding)

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool, template: Mapping[str, Any]) -> list[int]:
        self._check_open()
        if isinstance(prompt, str):
            return await self._encode(prompt, add_special_tokens=add_special_tokens)
        if prompt and isinstance(prompt[0], int):
            return list(prompt)  # pyright: ignore[reportReturnType, reportArgumentType] the first member tells the rest
        text = await self.apply_chat_template(prompt, template)  # pyright: ignore[reportArgumentType] as above
        return await self._encode(text, add_special_tokens=False)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self._check_open()
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    async def apply_chat_template(self, messages: Sequence[Message], template: Mapping[str, Any]) -> str:
        self._check_open()
        # In a thread: a hostile template may take seconds before its budget is used up.
        return await asyncio.to_thread(
            self._tokenizer.apply_chat_template, messages, chat_template=self._config.chat_template, kwargs=template
        )

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        self._check_open()
        stats = await self._guard(self._hooks.stats, EngineStats)
        return msgspec.structs.replace(stats, queued=self._admission.waiting)

    async def health(self) -> None:
        self._check_open()
        await self._guard(self._hooks.health, object)

    async def sleep(self) -> None:
        self._check_open()
        self._require("sleep", "cannot sleep")
        await self._guard(self._hooks.sleep, object)

    async def wake(self) -> None:
        self._check_open()
        self._require("sleep", "cannot sleep")
        await self._guard(self._hooks.wake, object)

    async def load_lora(self, name: str, source: str) -> None:
        self._check_open()
        self._require("dynamic_lora", "cannot load adapters while it runs")
        if name in self._info.loras:
            raise InvalidRequest(f"name: an adapter {name!r} is loaded already", engine=self._name, field="name")
        path = await asyncio.to_thread(resolve_adapter, name, source, self._weights)
        await self._guard(lambda: self._hooks.load_lora(name=name, path=path), object)
        self._info = msgspec.structs.replace(self._info, loras=(*self._info.loras, name))

    async def unload_lora(self, name: str) -> None:
        self._check_open()
        self._require("dynamic_lora", "cannot unload adapters while it runs")
        if name not in self._info.loras:
            loaded = ", ".join(self._info.loras) or "none"
            raise InvalidRequest(
                f"name: no adapter is named {name!r}; loaded are: {loaded}", engine=self._name, field="name"
            )
        # First out of the list, so that no request comes in that needs it.
        self._info = msgspec.structs.replace(self._info, loras=tuple(n for n in self._info.loras if n != name))
        await self._guard(lambda: self._hooks.unload_lora(name=name), object)

    async def reset_prefix_cache(self) -> None:
        self._check_open()
        self._require("reset_prefix_cache", "cannot reset its prefix cache")
        await self._guard(self._hooks.reset_prefix_cache, object)

    def _require(self, capability: str, lack: str) -> None:
        if not getattr(self._info.capabilities, capability):
            raise UnsupportedCapability(f"{self._name} {lack}", capability=capability, engine=self._name)

    async def close(self) -> None:
        self._closed = True
        self._admission.close()
        await self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed(f"the engine {self._name} was closed; load a new one", engine=self._name)

    async def _guard(self, hook: Callable[[], Awaitable[object]], expected: type[T]) -> T:
        """Await a hook; a plugin that raises what it did not map, or returns something else, is in error."""
        try:
            result = await hook()
            if not isinstance(result, expected):
                raise broken(self._name, f"returned a {type(result).__name__}, not a {expected.__name__}")
            if isinstance(result, msgspec.Struct):
                check_types(self._name, result)
        except Exception as error:  # noqa: BLE001 mapped, never swallowed
            raise mapped(error, self._name) from cause(error)
        except asyncio.CancelledError:
            if cancelled_itself():
                raise broken(self._name, "cancelled its own call") from None
            raise
        return result
