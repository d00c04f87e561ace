"""How to break an engine in one place: wrappers round a healthy one, and the register of faults."""

from __future__ import annotations

import importlib
import json
import pkgutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from anyengine import Engine, EngineConfig, GenerateRequest, SamplingParams
from anyengine.backend import Backend, EnginePlugin

from anyengine_conformance.simulated import SimulatedPlugin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from typing import Self

    from anyengine import Chunk, Completion, EngineStats, Score
    from anyengine.backend import (
        BackendInfo,
        EngineDescription,
        QuantizeJob,
        QuantizeReport,
        TokenDelta,
        TokenRequest,
    )
    from anyengine.hub import ModelFiles

__all__ = [
    "BrokenBackend",
    "BrokenEngine",
    "BrokenPlugin",
    "BrokenStream",
    "Fault",
    "Healthy",
    "all_faults",
    "as_dict",
    "as_list",
    "declared_file",
    "fault",
    "healthy_plugin",
    "is_ids",
    "sampling_of",
    "with_default",
]


class BrokenBackend(Backend):
    """A backend that hands everything on to a healthy one; a fault overrides one method."""

    def __init__(self, inner: Backend, config: EngineConfig) -> None:
        self.inner = inner
        self.config = config

    @property
    def info(self) -> BackendInfo:
        return self.inner.info

    def validate(self, request: TokenRequest) -> None:
        self.inner.validate(request)

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self.inner.stream(request)

    async def abort(self, request_id: str) -> None:
        await self.inner.abort(request_id)

    async def stats(self) -> EngineStats:
        return await self.inner.stats()

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        return await self.inner.score(token_ids, logprobs)

    async def health(self) -> None:
        await self.inner.health()

    async def close(self) -> None:
        await self.inner.close()


class BrokenPlugin(EnginePlugin):
    """A plugin that hands everything on to a healthy one, and puts a backend between.

    Attributes:
        inner: the healthy one; the selftest sets it.
        backend: the class that a loaded backend is wrapped in.
    """

    inner: EnginePlugin
    backend: ClassVar[type[BrokenBackend]] = BrokenBackend

    def describe(self) -> EngineDescription:
        return self.inner.describe()

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        return self.backend(await self.inner.load(config, model), config)

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:
        return await self.inner.quantize(job)


class BrokenStream:
    """A stream whose chunks go through a function."""

    def __init__(self, inner: Any, chunks: Callable[[AsyncIterator[Chunk]], AsyncGenerator[Chunk]]) -> None:
        self._inner = inner
        self._chunks = chunks

    async def __aenter__(self) -> Self:
        self._stream = await self._inner.__aenter__()
        self._read = self._chunks(aiter(self._stream))
        return self

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._read

    async def __aexit__(self, *error: object) -> None:
        # First the healthy stream, which ends whoever reads; a generator that is being read cannot be closed.
        await self._inner.__aexit__(*error)
        with suppress(RuntimeError):
            await self._read.aclose()


class BrokenEngine:
    """Stands before a healthy engine as a broken SDK would; a fault overrides one method.

    Attributes:
        ignored: options that never arrive.
    """

    ignored: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def generate(self, prompt: Any = None, **options: Any) -> Any:
        """Through :meth:`request`, and what comes back through :meth:`completion`."""
        prompt, options = self.request(prompt, options)
        inner: Any = self.inner
        return self.completion(await inner.generate(prompt, **options), options)

    def stream(self, prompt: Any = None, **options: Any) -> Any:
        """Through :meth:`request`, and what comes back through :meth:`chunks`."""
        prompt, options = self.request(prompt, options)
        return BrokenStream(self.inner.stream(prompt, **options), lambda chunks: self.chunks(chunks, options))

    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What is asked, changed; here without what is ignored."""
        return prompt, {name: value for name, value in options.items() if name not in self.ignored}

    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """How it is loaded, changed."""
        return config

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:  # noqa: ARG002 for the faults
        """What came back, changed; a list for a list of prompts."""
        return completion

    async def chunks(
        self,
        chunks: AsyncIterator[Chunk],
        options: Mapping[str, Any],  # noqa: ARG002 for the faults
    ) -> AsyncGenerator[Chunk]:
        """What came back piece by piece, changed."""
        async for chunk in chunks:
            yield chunk


def as_list(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_dict(value: object) -> dict[str, Any]:
    """The value if it is a dictionary, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def sampling_of(options: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters of a call; neutral ones where it has none, or something that is no such thing."""
    given = options.get("sampling")
    return given if isinstance(given, SamplingParams) else SamplingParams()


def with_default(prompt: object, options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Options with these where the call has none; a whole GenerateRequest takes none beside it, so it gets none."""
    return dict(options) if isinstance(prompt, GenerateRequest) else {**fields, **options}


def is_ids(prompt: object) -> bool:
    """Whether a prompt is token ids."""
    return isinstance(next(iter(as_list(prompt)), None), int)


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken engine, and the check that is there to catch it.

    Attributes:
        check: id of that check.
        what: the fault, in words.
        also_fails: ids of the other core checks that it trips, and if it is ``wide`` of the extensions, in
            ``also_fails/FAMILY.json`` (written by ``anyengine conformance selftest --write``, and reviewed).
        base: the healthy engine: ``simulated``, ``reference`` where real numbers matter, ``adapted`` where adapters
            do, or ``worker``, which is the reference engine where a worker is asked for, and else the simulated one.
        broken: what breaks it.
        wide: held against extensions too, which takes many times as long. For what an author easily gets wrong as a
            whole, such as a field that never arrives, and what shows in extensions most.
    """

    check: str
    what: str
    also_fails: tuple[str, ...]
    base: str
    broken: type[BrokenBackend | BrokenEngine | BrokenPlugin]
    wide: bool = False

    @property
    def name(self) -> str:
        """Of the class."""
        return self.broken.__name__

    async def describe(self) -> EngineDescription | None:
        """As a target of the runner."""
        return self._plugin().describe()

    async def load(self, config: Mapping[str, Any]) -> Engine:
        """As a target of the runner."""
        if issubclass(self.broken, BrokenEngine):
            config = self.broken.configured(config)
        engine = await load_healthy(self.base, self._plugin(), config)
        made: Any = self.broken(engine) if issubclass(self.broken, BrokenEngine) else engine
        return made

    async def quantize(self, model: str, scheme: str, output: Path, environment: str | None) -> Path:  # noqa: ARG002 it runs here
        """As a target of the runner."""
        return await Engine.quantize(self._plugin(), model=model, scheme=scheme, output=output)

    def _plugin(self) -> EnginePlugin:
        inner = healthy_plugin(self.base)
        if issubclass(self.broken, BrokenEngine):
            return inner
        plugin = self.broken() if issubclass(self.broken, BrokenPlugin) else _with(self.broken)
        plugin.inner = inner
        return plugin


def _with(backend: type[BrokenBackend]) -> BrokenPlugin:
    return type("Plugin", (BrokenPlugin,), {"backend": backend})()


@cache
def healthy_plugin(base: str) -> EnginePlugin:
    """The engine that is broken."""
    if base in ("simulated", "worker"):
        return SimulatedPlugin()
    if base == "adapted":
        from anyengine_conformance.adapted import AdaptedPlugin  # noqa: PLC0415 only faults in adapters need it

        return AdaptedPlugin()
    from anyengine.plugins import find_engine  # noqa: PLC0415 only faults in numbers need it

    return find_engine(base)


async def load_healthy(base: str, plugin: EnginePlugin, config: Mapping[str, Any]) -> Engine:
    """Load the engine that is broken; a plugin object runs in this process only, so in a worker it goes by its name."""
    in_worker = base == "worker" and config.get("isolation") == "process"
    return await Engine.load("reference" if in_worker else plugin, config=EngineConfig(**config))


@dataclass(frozen=True, slots=True)
class Healthy:
    """The engine that is broken, whole, as a target of the runner."""

    base: str

    async def describe(self) -> EngineDescription | None:
        return healthy_plugin(self.base).describe()

    async def load(self, config: Mapping[str, Any]) -> Engine:
        return await load_healthy(self.base, healthy_plugin(self.base), config)

    async def quantize(self, model: str, scheme: str, output: Path, environment: str | None) -> Path:  # noqa: ARG002 it runs here
        """As a target of the runner."""
        return await Engine.quantize(healthy_plugin(self.base), model=model, scheme=scheme, output=output)


_faults: dict[str, Fault] = {}


def declared_file(family: str) -> Path:
    """Where it stands which other checks the faults of a family trip: "check/Class" → ids."""
    return Path(__file__).parent / "also_fails" / f"{family}.json"


@cache
def _declared(family: str) -> dict[str, list[str]]:
    file = declared_file(family)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def fault(check: str, what: str, *, base: str = "simulated", wide: bool = False) -> Callable[[type[Any]], type[Any]]:
    """Register a class derived from BrokenBackend, BrokenEngine or BrokenPlugin; see :class:`Fault`."""

    def register(broken: type[Any]) -> type[Any]:
        name = f"{check}/{broken.__name__}"
        if name in _faults:
            raise ValueError(f"there are two faults {name}")
        also_fails = tuple(_declared(check.partition(".")[0]).get(name, ()))
        _faults[name] = Fault(check, what, also_fails, base, broken, wide)
        return broken

    return register


def all_faults() -> list[Fault]:
    """Every fault, in the order of the modules."""
    from anyengine_conformance import faults  # noqa: PLC0415 they import this module

    for module in sorted(info.name for info in pkgutil.iter_modules(faults.__path__)):
        importlib.import_module(f"{faults.__name__}.{module}")
    return list(_faults.values())
