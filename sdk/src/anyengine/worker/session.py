"""What a worker does when it is called: one method of :class:`Session` for each of the protocol."""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig, PluginError, UnsupportedParameter
from anyengine.worker.protocol import Loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from anyengine._model import StrictModel
    from anyengine.outputs import Completion, Embedding, Score
    from anyengine.quantization.make import Made
    from anyengine.request import GenerateRequest, Message, Prompt
    from anyengine.runtime.base import ChunkStream, Prepared
    from anyengine.runtime.local import LocalRuntime
    from anyengine.stats import EngineStats

__all__ = ["METHODS", "Session"]

#: Names that may be called; each is a method below.
METHODS = frozenset({
    "admit",
    "apply_chat_template",
    "close",
    "detokenize",
    "embed",
    "forget",
    "generate",
    "health",
    "leave",
    "load",
    "load_lora",
    "open",
    "prepare",
    "quantize",
    "reset_prefix_cache",
    "run",
    "score",
    "sleep",
    "stats",
    "tokenize",
    "unload_lora",
    "wake",
})  # fmt: skip


class Session:
    """One engine, and what the application has under way with it, by the ids of its calls.

    Every method takes the call's id first, and the protocol's arguments by name.

    Attributes:
        streams: opened, not ended.
        ask_every: seconds between two questions whether the engine works, while it does.
        progress: told (call's id, done, total) of calls that take long, from any thread.
    """

    ask_every = 5.0

    def __init__(self, progress: Callable[[int, int, int], None]) -> None:
        self.progress = progress
        self._runtime: LocalRuntime | None = None
        self._prepared: dict[int, Prepared] = {}
        self._admissions: dict[int, AbstractAsyncContextManager[None]] = {}
        self.streams: dict[int, ChunkStream] = {}

    @property
    def busy(self) -> bool:
        """Whether the engine has something to do."""
        return self._runtime is not None and self._runtime.busy

    @property
    def runtime(self) -> LocalRuntime:
        """The loaded engine."""
        if self._runtime is None:
            raise InvalidConfig("there is no engine yet: call load first")
        return self._runtime

    # -- loading ----------------------------------------------------------------------------------

    async def load(self, _id: int, *, engine: str, config: dict[str, Any], log_level: int = logging.WARNING) -> Loaded:
        from anyengine.config import EngineConfig  # noqa: PLC0415 the worker greets before it imports much
        from anyengine.place import describe  # noqa: PLC0415
        from anyengine.runtime.bringup import bring_up  # noqa: PLC0415

        if self._runtime is not None:
            raise InvalidConfig("this worker has an engine already; start another one")
        logging.root.setLevel(log_level)
        _check_known(EngineConfig, config, engine)
        plugin, description = describe(engine)
        model, runtime = await bring_up(plugin, description, EngineConfig(**config))
        self._runtime = runtime
        # What a load leaves, a library and its modules, stays: without this the collector would walk through millions
        # of objects every so often, while requests wait.
        await asyncio.to_thread(_settle_memory)
        # Twice within the time in which it has to answer.
        self.ask_every = min(self.ask_every, runtime.health_timeout / 2)
        return Loaded(model, runtime.info, runtime.concurrency)

    async def quantize(
        self,
        id_: int,
        *,
        engine: str,
        model: str,
        scheme: str,
        folder: str,
        revision: str | None = None,
        calibration: dict[str, Any] | None = None,
        log_level: int = logging.WARNING,
    ) -> Made:
        from anyengine.place import describe  # noqa: PLC0415 see load
        from anyengine.quantization.calibration import Calibration  # noqa: PLC0415
        from anyengine.quantization.make import make  # noqa: PLC0415

        logging.root.setLevel(log_level)
        if calibration is not None:
            _check_known(Calibration, calibration, engine, "calibration.")
        plugin, description = describe(engine)
        return await make(
            plugin,
            description,
            model=model,
            revision=revision,
            scheme=scheme,
            folder=Path(folder),
            calibration=None if calibration is None else Calibration(**calibration),
            progress=partial(self.progress, id_),
        )

    async def close(self, _id: int) -> None:
        if self._runtime is not None:
            await self._runtime.close()

    # -- requests ---------------------------------------------------------------------------------

    async def prepare(self, id_: int, *, request: dict[str, Any], flow: int = 0, admitted: bool = False) -> None:
        self._prepared[id_] = await self.runtime.prepare(_request(request), flow, admitted=admitted)

    async def forget(self, _id: int, *, prepared: int) -> None:
        self._prepared.pop(prepared, None)

    async def run(self, _id: int, *, prepared: int) -> Completion:
        return await self.runtime.run(self._prepared[prepared])

    async def generate(self, _id: int, *, request: dict[str, Any], flow: int = 0) -> Completion:
        return await self.runtime.generate(_request(request), flow)

    async def open(self, id_: int, *, request: dict[str, Any], flow: int = 0) -> None:
        self.streams[id_] = await self.runtime.stream(_request(request), flow)

    async def admit(self, id_: int, *, count: int) -> None:
        admission = self.runtime.admit(count)
        await admission.__aenter__()
        self._admissions[id_] = admission

    async def leave(self, _id: int, *, admission: int) -> None:
        held = self._admissions.pop(admission, None)
        if held is not None:
            await held.__aexit__(None, None, None)

    # -- text, scores, vectors --------------------------------------------------------------------

    async def score(self, _id: int, *, prompt: Prompt, logprobs: int = 0) -> Score:
        return await self.runtime.score(prompt, logprobs)

    async def embed(self, _id: int, *, prompt: Prompt) -> Embedding:
        return await self.runtime.embed(prompt)

    async def tokenize(
        self, _id: int, *, prompt: Prompt, add_special_tokens: bool = True, template: Mapping[str, Any] | None = None
    ) -> list[int]:
        return await self.runtime.tokenize(prompt, add_special_tokens=add_special_tokens, template=template or {})

    async def detokenize(self, _id: int, *, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return await self.runtime.detokenize(token_ids, skip_special_tokens=skip_special_tokens)

    async def apply_chat_template(
        self, _id: int, *, messages: list[Message], template: Mapping[str, Any] | None = None
    ) -> str:
        return await self.runtime.apply_chat_template(messages, template or {})

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self, _id: int) -> EngineStats:
        return await self.runtime.stats()

    async def health(self, _id: int) -> None:
        await self.runtime.health()

    async def sleep(self, _id: int) -> None:
        await self.runtime.sleep()

    async def wake(self, _id: int) -> None:
        await self.runtime.wake()

    async def load_lora(self, _id: int, *, name: str, source: str) -> None:
        await self.runtime.load_lora(name, source)

    async def unload_lora(self, _id: int, *, name: str) -> None:
        await self.runtime.unload_lora(name)

    async def reset_prefix_cache(self, _id: int) -> None:
        await self.runtime.reset_prefix_cache()


def _settle_memory() -> None:
    gc.collect()
    gc.freeze()


def _request(fields: dict[str, Any]) -> GenerateRequest:
    from anyengine.request import GenerateRequest  # noqa: PLC0415 see load

    _check_known(GenerateRequest, fields, None)
    return GenerateRequest(**fields)


def _check_known(model: type[StrictModel], fields: Mapping[str, Any], engine: str | None, prefix: str = "") -> None:
    """Refuse a field of a newer SDK: nothing is ever ignored."""
    known = model.model_fields
    for name, value in fields.items():
        if name not in known:
            raise UnsupportedParameter(
                f"{prefix}{name}: the anyengine in the worker's environment does not know this field; update it there",
                engine=engine,
                field=prefix + name,
                supported=known,
            )
        annotation: Any = known[name].annotation if isinstance(value, dict) else None
        if hasattr(annotation, "model_fields"):
            _check_known(annotation, value, engine, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType] plain data


def unmapped(error: Exception, method: str) -> PluginError:
    """What a call raised that is none of our errors."""
    from anyengine.runtime.contract import words  # noqa: PLC0415 see load

    return PluginError(f"{method} raised {type(error).__name__} in the worker, which nobody maps: {words(error)}")
