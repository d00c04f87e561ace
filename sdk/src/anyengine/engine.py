"""The uniform API: one :class:`Engine` over every inference engine."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import anyio
import anyio.lowlevel

from anyengine._concurrency import Deferred, despite_cancellation, together
from anyengine._prompts import is_many, make_request, placed, prompt_of, token_ids_of
from anyengine.config import EngineConfig
from anyengine.errors import (
    AnyEngineError,
    InvalidConfig,
    InvalidRequest,
    PluginError,
)
from anyengine.loading import EngineLoading
from anyengine.plain import plain_data
from anyengine.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from anyengine.backend import BackendInfo, EnginePlugin
    from anyengine.capabilities import Capabilities
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Completion, Embedding, Score
    from anyengine.quantization import Calibration
    from anyengine.request import GenerateRequest, Message, Prompt, RequestOptions
    from anyengine.runtime import Prepared, Runtime
    from anyengine.stats import EngineStats

__all__ = ["Engine"]

#: Prompts of a list that are checked in one go.
_CHECKED_AT_ONCE = 64


class Engine:
    """A loaded model in some inference engine; the same calls mean the same on each.

    Made by :meth:`load`. Safe for any number of concurrent calls from one event loop.
    """

    def __init__(self, name: str, config: EngineConfig, model: ModelFiles, runtime: Runtime, extensions: Any) -> None:
        self._name = name
        self._config = config
        self._model = model
        self._runtime = runtime
        self._extensions: Any = extensions
        self._extended = len(extensions.generate.get_hookimpls()) > 1  # one is the operation itself
        self._flows = count()

    # -- loading ----------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        engine: str | EnginePlugin = "reference",
        model: str | Path | None = None,
        *,
        config: EngineConfig | None = None,
        extensions: Iterable[str | object] = (),
        **options: Any,
    ) -> EngineLoading:
        """Bring a model up in an engine.

        Used as ``async with Engine.load("vllm", model="…") as engine``, or ``engine = await Engine.load(…)`` with
        ``await engine.close()`` at the end.

        Args:
            engine: name of an installed engine (``anyengine engines`` lists them), or a plugin object.
            model: local folder, Hugging Face hub id, or a name built into the plugin. None: the plugin's own model.
            config: a ready configuration, instead of ``model`` and ``options``.
            extensions: names of installed extensions, or objects with hooks; the first one is outermost.
            options: fields of :class:`~anyengine.EngineConfig`.

        Raises (from the awaited or entered result):
            UnknownEngine, InvalidConfig, UnsupportedParameter: the call cannot be right.
            ModelNotFound, OutOfMemory, EngineStartupError, PluginError: the engine did not come up.
        """

        def build() -> EngineConfig:
            if config is None:
                if model is not None:
                    options["model"] = str(model) if isinstance(model, Path) else model
                return EngineConfig(**options)
            if options or model is not None:
                raise InvalidConfig("give either config, or model and options, not both", field="config")
            if not isinstance(cast("object", config), EngineConfig):
                raise InvalidConfig(f"config: an EngineConfig is needed, not a {type(config).__name__}", field="config")
            return config

        return EngineLoading(cls, engine, build, extensions)

    @staticmethod
    async def quantize(
        engine: str | EnginePlugin = "reference",
        *,
        model: str | Path,
        scheme: str,
        output: str | Path,
        calibration: Calibration | str | Path | Sequence[str] | None = None,
        revision: str | None = None,
        oracle: str | None = "auto",
        isolation: Literal["auto", "process", "none"] = "auto",
        environment: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Make a quantised checkpoint: a Hugging Face checkpoint, with a manifest in ``anyengine.json``.

        The manifest says what it was made of and how, has the hashes of all files, and how far the quantised model is
        from the float one on held-out text. The folder appears when it is whole; cancelling before stops the work and
        leaves nothing behind.

        Args:
            engine: whose toolchain does it.
            model: the source checkpoint: local folder, hub id, or a name built into the plugin.
            scheme: one of the engine's ``capabilities.quantize``.
            output: folder to make; must not exist, or be empty.
            calibration: what a scheme of ``capabilities.calibrated`` is fitted to: a text or JSONL file, a list of
                texts, or a :class:`~anyengine.Calibration` with the length and number of sequences and a seed. None:
                the small built-in set. Refused with other schemes.
            revision: of a hub model.
            oracle: name of the engine that measures the drift, ``auto`` for the reference engine or transformers,
                whichever can run the checkpoint; if neither can the manifest says why. None: it is not measured.
            isolation: as in :class:`~anyengine.EngineConfig`.
            environment: whose interpreter runs the toolchain, by name.
            progress: called with (done, total) steps, perhaps from another thread.

        Returns:
            The folder.

        Raises:
            UnsupportedCapability, UnsupportedParameter: the engine cannot quantise, or not by that scheme, or not that
                model.
            InvalidConfig: there is something at ``output``, or the calibration text does not do.
            ModelNotFound: the source is unusable.
            OutOfSpace: the disk is full, or would be.
            EngineDied: the worker ended before it was done.
        """
        from anyengine.quantization.run import quantize  # noqa: PLC0415 few programs ever do

        return await quantize(
            engine,
            model=str(model),
            scheme=scheme,
            output=Path(output),
            revision=revision,
            calibration=calibration,
            oracle=oracle,
            isolation=isolation,
            environment=environment,
            progress=progress,
        )

    # -- what was loaded --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the engine."""
        return self._name

    @property
    def config(self) -> EngineConfig:
        """How it was loaded."""
        return self._config

    @property
    def pid(self) -> int | None:
        """Id of the process at the head of the engine's worker; None where it runs in this process."""
        return self._runtime.pid

    @property
    def model(self) -> ModelFiles:
        """The checkpoint that was loaded."""
        return self._model

    @property
    def info(self) -> BackendInfo:
        """What the engine says about what it loaded: context length, vocabulary, data type."""
        return self._runtime.info

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do with this model on this device."""
        return self._runtime.info.capabilities

    # -- generation -------------------------------------------------------------------------------

    @overload
    async def generate(
        self, prompt: str | Sequence[int] | Sequence[Message] | GenerateRequest, **options: Unpack[RequestOptions]
    ) -> Completion: ...
    @overload
    async def generate(
        self, prompt: None = None, *, messages: Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Completion: ...
    @overload
    async def generate(self, prompt: Sequence[Prompt], **options: Unpack[RequestOptions]) -> list[Completion]: ...
    @overload
    async def generate(
        self, prompt: Sequence[Prompt], *, return_exceptions: bool, **options: Unpack[RequestOptions]
    ) -> list[Completion | AnyEngineError]: ...
    async def generate(
        self,
        prompt: Any = None,
        *,
        messages: Sequence[Message] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[RequestOptions],
    ) -> Any:
        """Generate to the end.

        A ``str`` is a plain prompt, a list of ``int`` is token ids, a list of messages goes through the chat template;
        a list of those is many prompts. All of a list are checked before any is submitted; if one fails the others
        are aborted and its error is raised.

        Args:
            prompt: one prompt, or a list of prompts.
            messages: a chat, instead of ``prompt``.
            return_exceptions: with a list: a failure takes the place of its completion instead.
            options: fields of :class:`~anyengine.GenerateRequest`, for all prompts.

        Returns:
            One completion, or one for each prompt, in order. With ``n`` above 1 the others are its ``alternatives``.

        Raises:
            InvalidRequest, UnsupportedParameter, UnsupportedCapability: nothing was submitted.
            Overloaded, RequestTimeout, EngineDied, EngineUnresponsive, PluginError: the request failed.
        """
        flow = next(self._flows)
        if messages is None and is_many(prompt):
            return await self._generate_many(prompt, options, flow, return_exceptions=return_exceptions)
        request = make_request(prompt, messages, options)
        if return_exceptions:
            raise InvalidRequest("return_exceptions: needs a list of prompts", field="return_exceptions")
        if not self._extended:
            return await self._runtime.generate(request, flow)
        # An extension sees what the engine can honour only, and may generate it more than once.
        prepared = await self._runtime.prepare(request, flow)
        try:
            return await self._generate(prepared)
        finally:
            self._runtime.forget(prepared)

    async def _generate(self, prepared: Prepared) -> Completion:
        inner = Deferred(partial(self._runtime.run, prepared))
        answer: Any = self._extensions.generate(
            engine=self._name, model=self._model.name, request=prepared.request, inner=inner
        )
        if not hasattr(answer, "__await__"):
            raise PluginError(f"an extension's generate hook returned a {type(answer).__name__}, not an awaitable")
        return await answer

    async def _generate_many(
        self, prompts: Sequence[Prompt], options: RequestOptions, flow: int, *, return_exceptions: bool
    ) -> list[Any]:
        # Room for one prompt is held while the list lasts; the others follow as places come free.
        results: list[Completion | AnyEngineError | None] = [None] * len(prompts)
        ready: list[tuple[int, Prepared]] = []
        try:
            for position, prompt in enumerate(prompts):
                try:
                    request = make_request(prompt, None, options)
                    ready.append((position, await self._runtime.prepare(request, flow, admitted=True)))
                except AnyEngineError as error:
                    results[position] = placed(error, position)
                    if not return_exceptions:
                        raise
                if position % _CHECKED_AT_ONCE == _CHECKED_AT_ONCE - 1:
                    await anyio.lowlevel.checkpoint()  # others on this loop have their turn
            if ready:
                await self._serve(ready, results, return_exceptions=return_exceptions)
        finally:
            for _, prepared in ready:
                self._runtime.forget(prepared)
        return cast("list[Any]", results)

    async def _serve(
        self,
        ready: Sequence[tuple[int, Prepared]],
        results: list[Completion | AnyEngineError | None],
        *,
        return_exceptions: bool,
    ) -> None:
        """Generate as many at once as it pays, each result in its place."""
        n = ready[0][1].request.n
        remaining = iter(ready)

        async def serve() -> None:
            for position, prepared in remaining:
                try:
                    results[position] = await self._generate(prepared)
                except AnyEngineError as error:
                    results[position] = placed(error, position)
                    if not return_exceptions:
                        raise

        async with self._runtime.admit(n):
            await together([serve] * min(len(ready), -(-self._runtime.concurrency // n)))

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Message] | GenerateRequest | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Generate, and yield what is new: see :class:`~anyengine.Stream`.

        Args:
            prompt: one prompt: text, token ids, or messages.
            messages: a chat, instead of ``prompt``.
            options: fields of :class:`~anyengine.GenerateRequest`.
        """
        if messages is None and is_many(prompt):
            raise InvalidRequest("prompt: stream takes one prompt; open one stream for each", field="prompt")
        request = partial(make_request, prompt, messages, options)
        start = partial(self._extensions.stream, engine=self._name, model=self._model.name)
        return Stream(self._runtime, request, start, next(self._flows))

    async def score(self, prompt: Prompt, *, logprobs: int = 0) -> Score:
        """Log-probability of each token given those before it, in nats, in the model's raw distribution.

        Args:
            prompt: text, token ids, or messages; at least two tokens.
            logprobs: this many most likely alternatives at each position.

        Raises:
            UnsupportedCapability: the engine cannot score.
        """
        request = make_request(prompt, None, {"logprobs": logprobs})
        return await self._runtime.score(prompt_of(request), logprobs)

    async def embed(self, prompt: Prompt) -> Embedding:
        """A text as a vector; the engine was loaded with ``task="embed"``.

        Args:
            prompt: text, token ids, or messages.

        Raises:
            UnsupportedCapability: the engine cannot embed, or was loaded to generate.
        """
        return await self._runtime.embed(prompt_of(make_request(prompt, None, {})))

    # -- text without a generation ----------------------------------------------------------------

    async def tokenize(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that ``generate`` would send for this prompt.

        Args:
            prompt: text, token ids, or messages.
            add_special_tokens: for text: let the tokenizer add its own, such as a beginning-of-sequence token.
            chat_template_kwargs: for messages: extra variables of the chat template.
        """
        request = make_request(prompt, None, {"chat_template_kwargs": chat_template_kwargs or {}})
        if not add_special_tokens and not isinstance(request.prompt, str):
            raise InvalidRequest(
                "add_special_tokens: only a text gets special tokens added; ids and chats are taken as they are",
                field="add_special_tokens",
            )
        return await self._runtime.tokenize(
            prompt_of(request), add_special_tokens=add_special_tokens, template=request.chat_template_kwargs
        )

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Args:
            token_ids: any ids; those outside the vocabulary have no text.
            skip_special_tokens: leave special tokens out.
        """
        return await self._runtime.detokenize(token_ids_of(token_ids), skip_special_tokens=skip_special_tokens)

    async def count_tokens(self, prompt: Prompt, *, chat_template_kwargs: Mapping[str, Any] | None = None) -> int:
        """Length of the prompt in tokens, as ``usage.prompt_tokens`` would say.

        Args:
            prompt: text, token ids, or messages.
            chat_template_kwargs: for messages: extra variables of the chat template.
        """
        return len(await self.tokenize(prompt, chat_template_kwargs=chat_template_kwargs))

    async def apply_chat_template(
        self, messages: Sequence[Message], *, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt that the model's chat template makes of a chat.

        Args:
            messages: the chat.
            chat_template_kwargs: extra variables of the template.
        """
        chat = plain_data(list(messages), "messages")
        return await self._runtime.apply_chat_template(
            chat, plain_data(chat_template_kwargs or {}, "chat_template_kwargs")
        )

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        """A snapshot of the engine's counters and gauges."""
        return await self._runtime.stats()

    async def load_lora(self, name: str, source: str | Path) -> None:
        """Load a low-rank adapter, for requests to name in ``lora``.

        Args:
            name: a new one.
            source: local folder or hub id.

        Raises:
            UnsupportedCapability: the engine cannot load adapters while it runs.
            InvalidRequest: an adapter of that name is loaded.
            ModelNotFound: there is no usable adapter at ``source``.
            UnsupportedParameter: it does not fit the model, or the limits that the engine was loaded with.
        """
        await self._runtime.load_lora(name, str(source))

    async def unload_lora(self, name: str) -> None:
        """Forget a low-rank adapter.

        Raises:
            UnsupportedCapability: the engine cannot.
            InvalidRequest: no adapter of that name is loaded.
        """
        await self._runtime.unload_lora(name)

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, so that the next prompts are computed in full.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        await self._runtime.reset_prefix_cache()

    async def health(self) -> None:
        """Return if the engine works.

        Raises:
            EngineDied, EngineUnresponsive: it does not.
        """
        await self._runtime.health()

    async def sleep(self) -> None:
        """Release device memory, keeping the means to come back.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        await self._runtime.sleep()

    async def wake(self) -> None:
        """Come back from :meth:`sleep`.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        await self._runtime.wake()

    async def close(self) -> None:
        """Release everything; open requests end with reason ``abort``. Idempotent."""
        await despite_cancellation(self._runtime.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
