"""Generated from ``anyengine/engine.py`` by ``tools/make_sync.py``; do not edit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from anyengine.engine import Engine as AsyncEngine
from anyengine.sync.portal import Portal
from anyengine.sync.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self, Unpack

    from anyengine.backend import BackendInfo, EnginePlugin
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.errors import AnyEngineError
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Completion, Embedding, Score
    from anyengine.quantization import Calibration
    from anyengine.request import GenerateRequest, Message, Prompt, RequestOptions
    from anyengine.stats import EngineStats

__all__ = ["Engine"]


class Engine:
    """A loaded model in some inference engine; see :class:`anyengine.Engine`. Safe to call from any thread."""

    def __init__(self, engine: AsyncEngine, portal: Portal) -> None:
        self._engine = engine
        self._portal = portal

    @classmethod
    def load(
        cls,
        engine: str | EnginePlugin = "reference",
        model: str | Path | None = None,
        *,
        config: EngineConfig | None = None,
        extensions: Iterable[str | object] = (),
        **options: Any,
    ) -> Self:
        """Bring a model up in an engine.

        Used as ``with Engine.load("vllm", model="…") as engine``, or ``engine = Engine.load(…)`` with
        ``engine.close()`` at the end.

        Args:
            engine: name of an installed engine (``anyengine engines`` lists them), or a plugin object.
            model: local folder, Hugging Face hub id, or a name built into the plugin. None: the plugin's own model.
            config: a ready configuration, instead of ``model`` and ``options``.
            extensions: names of installed extensions, or objects with hooks; the first one is outermost.
            options: fields of :class:`~anyengine.EngineConfig`.

        Raises:
            UnknownEngine, InvalidConfig, UnsupportedParameter: the call cannot be right.
            ModelNotFound, OutOfMemory, EngineStartupError, PluginError: the engine did not come up.
        """
        loading = AsyncEngine.load(engine, model, config=config, extensions=extensions, **options)
        portal = Portal(partial(loading.__aexit__, None, None, None))
        try:
            return cls(portal.call(loading.__aenter__), portal)
        except BaseException:
            portal.close()
            raise

    @staticmethod
    def quantize(
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
        portal = Portal()
        try:
            return portal.call(
                partial(
                    AsyncEngine.quantize,
                    engine,
                    model=model,
                    scheme=scheme,
                    output=output,
                    calibration=calibration,
                    revision=revision,
                    oracle=oracle,
                    isolation=isolation,
                    environment=environment,
                    progress=progress,
                )
            )
        finally:
            portal.close()

    @property
    def name(self) -> str:
        """Name of the engine."""
        return self._engine.name

    @property
    def config(self) -> EngineConfig:
        """How it was loaded."""
        return self._engine.config

    @property
    def pid(self) -> int | None:
        """Id of the process at the head of the engine's worker; None where it runs in this process."""
        return self._engine.pid

    @property
    def model(self) -> ModelFiles:
        """The checkpoint that was loaded."""
        return self._engine.model

    @property
    def info(self) -> BackendInfo:
        """What the engine says about what it loaded: context length, vocabulary, data type."""
        return self._engine.info

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do with this model on this device."""
        return self._engine.capabilities

    @overload
    def generate(
        self, prompt: str | Sequence[int] | Sequence[Message] | GenerateRequest, **options: Unpack[RequestOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self, prompt: None = None, *, messages: Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Completion: ...

    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[RequestOptions]) -> list[Completion]: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, return_exceptions: bool, **options: Unpack[RequestOptions]
    ) -> list[Completion | AnyEngineError]: ...

    def generate(
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
        return self._portal.call(
            partial(self._engine.generate, prompt, messages=messages, return_exceptions=return_exceptions, **options)
        )

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
        return Stream(self._portal, self._engine.stream(prompt, messages=messages, **options))

    def score(self, prompt: Prompt, *, logprobs: int = 0) -> Score:
        """Log-probability of each token given those before it, in nats, in the model's raw distribution.

        Args:
            prompt: text, token ids, or messages; at least two tokens.
            logprobs: this many most likely alternatives at each position.

        Raises:
            UnsupportedCapability: the engine cannot score.
        """
        return self._portal.call(partial(self._engine.score, prompt, logprobs=logprobs))

    def embed(self, prompt: Prompt) -> Embedding:
        """A text as a vector; the engine was loaded with ``task="embed"``.

        Args:
            prompt: text, token ids, or messages.

        Raises:
            UnsupportedCapability: the engine cannot embed, or was loaded to generate.
        """
        return self._portal.call(partial(self._engine.embed, prompt))

    def tokenize(
        self, prompt: Prompt, *, add_special_tokens: bool = True, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The token ids that ``generate`` would send for this prompt.

        Args:
            prompt: text, token ids, or messages.
            add_special_tokens: for text: let the tokenizer add its own, such as a beginning-of-sequence token.
            chat_template_kwargs: for messages: extra variables of the chat template.
        """
        return self._portal.call(
            partial(
                self._engine.tokenize,
                prompt,
                add_special_tokens=add_special_tokens,
                chat_template_kwargs=chat_template_kwargs,
            )
        )

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Args:
            token_ids: any ids; those outside the vocabulary have no text.
            skip_special_tokens: leave special tokens out.
        """
        return self._portal.call(partial(self._engine.detokenize, token_ids, skip_special_tokens=skip_special_tokens))

    def count_tokens(self, prompt: Prompt, *, chat_template_kwargs: Mapping[str, Any] | None = None) -> int:
        """Length of the prompt in tokens, as ``usage.prompt_tokens`` would say.

        Args:
            prompt: text, token ids, or messages.
            chat_template_kwargs: for messages: extra variables of the chat template.
        """
        return self._portal.call(partial(self._engine.count_tokens, prompt, chat_template_kwargs=chat_template_kwargs))

    def apply_chat_template(
        self, messages: Sequence[Message], *, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt that the model's chat template makes of a chat.

        Args:
            messages: the chat.
            chat_template_kwargs: extra variables of the template.
        """
        return self._portal.call(
            partial(self._engine.apply_chat_template, messages, chat_template_kwargs=chat_template_kwargs)
        )

    def stats(self) -> EngineStats:
        """A snapshot of the engine's counters and gauges."""
        return self._portal.call(self._engine.stats)

    def load_lora(self, name: str, source: str | Path) -> None:
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
        return self._portal.call(partial(self._engine.load_lora, name, source))

    def unload_lora(self, name: str) -> None:
        """Forget a low-rank adapter.

        Raises:
            UnsupportedCapability: the engine cannot.
            InvalidRequest: no adapter of that name is loaded.
        """
        return self._portal.call(partial(self._engine.unload_lora, name))

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, so that the next prompts are computed in full.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        return self._portal.call(self._engine.reset_prefix_cache)

    def health(self) -> None:
        """Return if the engine works.

        Raises:
            EngineDied, EngineUnresponsive: it does not.
        """
        return self._portal.call(self._engine.health)

    def sleep(self) -> None:
        """Release device memory, keeping the means to come back.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        return self._portal.call(self._engine.sleep)

    def wake(self) -> None:
        """Come back from :meth:`sleep`.

        Raises:
            UnsupportedCapability: the engine cannot.
        """
        return self._portal.call(self._engine.wake)

    def close(self) -> None:
        """Release everything; open requests end with reason ``abort``. Idempotent."""
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
