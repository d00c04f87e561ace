"""Engines that come up or go down in the wrong way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from anyengine import EngineClosed, EngineConfig, EngineDied, EngineStartupError
from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, BrokenPlugin, fault

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from anyengine import Chunk, EngineStats
    from anyengine.backend import Backend, BackendInfo
    from anyengine.hub import ModelFiles


class ChangedInfo(BrokenBackend):
    """Changes what is said of what was loaded."""

    def change(self, info: BackendInfo) -> BackendInfo:
        """What becomes of it."""
        return info

    @property
    def info(self) -> BackendInfo:
        return self.change(self.inner.info)


@fault("lifecycle.info-is-plausible", "the engine says that it runs 0 sequences at once")
class NoSequences(BrokenEngine):
    @property
    def info(self) -> Any:
        return replace(self.inner.info, max_num_seqs=0)


@fault("lifecycle.capabilities-are-known", "a declared name has a mistake in it")
class Misspelt(BrokenPlugin):
    def describe(self) -> Any:
        described = self.inner.describe()
        return replace(described, capabilities=_misspelt(described.capabilities))

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        class Loaded(ChangedInfo):
            def change(self, info: BackendInfo) -> BackendInfo:
                return replace(info, capabilities=_misspelt(info.capabilities))

        return Loaded(await self.inner.load(config, model), config)


def _misspelt(capabilities: Any) -> Any:
    return replace(capabilities, sampling=capabilities.sampling | {"top-k"})


@fault("lifecycle.logprobs-are-declared-whole", "log-probabilities without a number of alternatives")
class NoAlternatives(BrokenEngine):
    @property
    def capabilities(self) -> Any:
        return replace(self.inner.capabilities, max_logprobs=0)


@fault("lifecycle.loaded-within-described", "the loaded engine declares more than the plugin")
class DeclaresMore(ChangedInfo):
    def change(self, info: BackendInfo) -> BackendInfo:
        return replace(info, capabilities=replace(info.capabilities, dtypes=info.capabilities.dtypes | {"float16"}))


@fault("lifecycle.healthy-after-load", "health says that the engine died")
class Unwell(BrokenEngine):
    async def health(self) -> None:
        raise EngineDied("dead", engine="simulated")


@fault("lifecycle.serves-many-at-once", "the last prompt is kept in the engine, not in the request")
class LastPrompt(BrokenEngine):
    calls = 0

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        self.calls += 1
        crowded = self.calls > 20  # noqa: PLR2004 more than other checks ask at once
        self.prompt = prompt
        try:
            return await super().generate(self.first if crowded else prompt, **options)
        finally:
            self.first = prompt
            self.calls -= 1

    first: Any = "first"


@fault("lifecycle.idle-after-load", "the request that warmed the engine up counts as waiting for ever")
class WarmUpStays(BrokenBackend):
    async def stats(self) -> EngineStats:
        return replace(await self.inner.stats(), waiting=1)


@fault("lifecycle.close-ends-streams", "an open stream raises when the engine is closed")
class StreamRaisesOnClose(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        async for chunk in chunks:
            if chunk.finish is not None and chunk.finish.reason == "abort":
                raise EngineDied("closed", engine="simulated")
            yield chunk


@fault("lifecycle.close-ends-calls", "a waiting call raises EngineDied when the engine is closed")
class CallDiesOnClose(BrokenEngine):
    def completion(self, completion: Any, options: Mapping[str, Any]) -> Any:
        if getattr(completion, "finish_reason", None) == "abort":
            raise EngineDied("closed", engine="simulated")
        return completion


@fault("lifecycle.close-is-idempotent", "the second close raises")
class ClosesOnce(BrokenEngine):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise EngineClosed("closed already", engine="simulated")
        self.closed = True
        await self.inner.close()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.inner.close()


@fault("lifecycle.closed-refuses", "statistics are answered after close")
class AnswersAfterClose(BrokenEngine):
    last: Any = None

    async def stats(self) -> Any:
        try:
            self.last = await self.inner.stats()
        except EngineClosed:
            return self.last
        return self.last


@fault("lifecycle.loads-again", "a device that was used once stays taken")
class StaysTaken(BrokenEngine):
    closes: ClassVar[int] = 0

    async def close(self) -> None:
        if self.inner.config.max_model_len is None:
            type(self).closes += self.began
        self.began = False
        await self.inner.close()

    began = False

    def stream(self, prompt: Any = None, **options: Any) -> Any:
        # The scenario of the check streams with all the room there is, and closes meanwhile.
        self.began = options.get("max_tokens", 0) > 500  # noqa: PLR2004
        return super().stream(prompt, **options)

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        if type(self).closes and options == {"max_tokens": 2}:
            raise EngineStartupError("the device is taken", engine="simulated")
        return await super().generate(prompt, **options)


class ChangedConfig(BrokenEngine):
    """Loads another configuration."""

    ignored_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in config.items() if name not in cls.ignored_fields}


@fault("lifecycle.missing-model", "a model that is not there becomes the default one")
class DefaultModel(ChangedConfig):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = str(config.get("model", "")).startswith("/nowhere")
        return {name: value for name, value in config.items() if name != "model" or not missing}


@fault("lifecycle.broken-model", "a broken checkpoint becomes the default one")
class BrokenBecomesDefault(ChangedConfig):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        broken = str(config.get("model", "")).endswith("broken")
        return {name: value for name, value in config.items() if name != "model" or not broken}


@fault("lifecycle.unknown-config-field", "unknown configuration fields are dropped")
class UnknownConfigDropped(ChangedConfig):
    ignored_fields = ("max_model_length",)
