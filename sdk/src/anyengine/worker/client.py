"""The runtime of an engine that lives in a worker: what is asked of it here is done there."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from anyengine._concurrency import Once, despite_cancellation
from anyengine.errors import AnyEngineError, EngineClosed, EngineStartupError, UnknownEngine
from anyengine.outputs import Completion, Embedding, Score
from anyengine.runtime.base import Prepared, Runtime
from anyengine.stats import EngineStats
from anyengine.worker.connection import Connection
from anyengine.worker.process import WorkerProcess
from anyengine.worker.protocol import PROTOCOL, Hello, Loaded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from anyengine.backend import BackendInfo
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Chunk
    from anyengine.place import Worker
    from anyengine.request import GenerateRequest, Message, Prompt
    from anyengine.runtime.base import ChunkStream
    from anyengine.worker.mailbox import Mailbox

__all__ = ["WorkerRuntime", "end_worker", "greeted_worker", "start_worker"]

#: Seconds that a worker is given to end by itself: after its engine was closed, or its load was cancelled.
_GRACE = 10.0
#: Fields of a configuration that are honoured here, before the worker starts, and not sent.
_HERE = {"isolation", "environment", "env"}


async def start_worker(place: Worker, config: EngineConfig) -> tuple[ModelFiles, WorkerRuntime]:
    """Start a worker, and load the engine in it.

    Raises:
        EngineStartupError: the worker did not start, speaks another protocol, or was not ready in time.
        AnyEngineError: whatever loading the engine raises.
    """
    begun = monotonic()
    process, connection = await greeted_worker(
        place, _variables(config), startup_timeout=config.startup_timeout, health_timeout=config.health_timeout
    )
    # Beside us: a load that does not let go of its worker's event loop does not answer a cancellation either.
    job = asyncio.ensure_future(connection.call("load", Loaded, **_load(place, config, process.log_level)))
    try:
        await asyncio.wait([job], timeout=max(0.0, config.startup_timeout - (monotonic() - begun)))
        if not job.done():
            raise _late(place, process, config.startup_timeout)
        _, loaded = job.result()
        process.ready()
        return loaded.model, WorkerRuntime(place.engine, config, loaded, process, connection)
    except BaseException as error:
        await despite_cancellation(end_worker(process, connection, job))
        if isinstance(error, AnyEngineError):
            _locate(error, place)
        raise


async def greeted_worker(
    place: Worker, variables: Mapping[str, str], *, startup_timeout: float, health_timeout: float = 60.0
) -> tuple[WorkerProcess, Connection]:
    """Start a worker, and exchange greetings with it; whoever gets it ends it with :func:`end_worker`.

    Raises:
        EngineStartupError: it did not start, speaks another protocol, or did not greet in time.
    """
    loop = asyncio.get_running_loop()
    connection: Connection | None = None

    def failed(error: AnyEngineError) -> None:
        if connection is not None and connection.error is None:
            connection.fail(error)

    process = WorkerProcess(
        place.python, place.engine, variables=variables, health_timeout=health_timeout, failed=failed
    )
    try:
        process.requests.setblocking(False)  # noqa: FBT003 the standard library's signature
        _, connection = await loop.create_unix_connection(
            lambda: Connection(loop, process.died, process.exited), sock=process.requests
        )
        with anyio.move_on_after(startup_timeout) as limit:
            hello = await connection.hello
            process.worker_pid = hello.pid
            _check_hello(place, hello)
            connection.send(Hello(PROTOCOL, version("anyengine")))
            return process, connection
        assert limit.cancelled_caught  # noqa: S101 there is no other way here
        raise _late(place, process, startup_timeout)
    except BaseException as error:
        await despite_cancellation(end_worker(process, connection))
        if isinstance(error, AnyEngineError):
            error.engine = error.engine or place.engine
        raise


async def end_worker(
    process: WorkerProcess, connection: Connection | None, job: asyncio.Future[Any] | None = None
) -> None:
    """End a worker that serves nobody, and all that belongs to it.

    Args:
        process: the worker's.
        connection: to it, if there was one yet.
        job: the call that it is there for. Where that is under way it is cancelled, and has a moment to end by itself.
    """
    process.closing()
    if job is not None and not job.done():
        job.cancel()
        await asyncio.wait([job], timeout=_GRACE)
    process.kill()
    if connection is not None:
        await connection.close(process.died())
    else:
        process.requests.close()
    if job is not None:
        await asyncio.gather(job, return_exceptions=True)  # hung up on, it has ended
    await process.gone(_GRACE)


def _locate(error: AnyEngineError, place: Worker) -> None:
    """Say where it comes from."""
    error.engine = error.engine or place.engine
    if isinstance(error, UnknownEngine) and place.environment is not None:
        error.field = "environment"
        hint = "`anyengine env list` shows what each environment has"
        error.message = f"environment: in {place.environment!r} {error.message}; {hint}"
        error.args = (error.message,)


def _late(place: Worker, process: WorkerProcess, seconds: float) -> EngineStartupError:
    return EngineStartupError(
        f"{place.engine} was not ready after {seconds} s (startup_timeout){process.last_words()}", engine=place.engine
    )


def _variables(config: EngineConfig) -> dict[str, str]:
    """Environment variables of the worker."""
    if config.devices is None:
        return dict(config.env)
    visible = ",".join(map(str, config.devices))
    # Numbered as the driver does, not by speed.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible} | dict(config.env)


def _load(place: Worker, config: EngineConfig, log_level: int) -> dict[str, Any]:
    fields = {name: value for name, value in config.to_dict().items() if name not in _HERE}
    return {"engine": place.engine, "config": fields, "log_level": log_level}


def _check_hello(place: Worker, hello: Hello) -> None:
    if hello.protocol[0] != PROTOCOL[0]:
        where = f"environment {place.environment}" if place.environment else f"interpreter {place.python}"
        raise EngineStartupError(
            f"the anyengine {hello.sdk} of the {where} speaks version {hello.protocol[0]} of the worker protocol, this "
            f"one ({version('anyengine')}) version {PROTOCOL[0]}; install the same version there",
            engine=place.engine,
        )


class _Chunks:
    """One request's chunks; see :class:`anyengine.runtime.base.ChunkStream`."""

    def __init__(self, connection: Connection, id_: int, mailbox: Mailbox) -> None:
        self._connection = connection
        self._id = id_
        self._mailbox = mailbox
        self._begun = False
        self._over = False

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            self._connection.tell("read", stream=self._id)
        return await self._mailbox.take()

    @property
    def ended(self) -> bool:
        return self._mailbox.drained

    async def aclose(self) -> None:
        self._over = True
        await despite_cancellation(self._connection.leave(self._id, self._mailbox))


class WorkerRuntime(Runtime):
    """Hands everything to a worker; only validation of types and the merging of chunks happen here."""

    def __init__(
        self, engine: str, config: EngineConfig, loaded: Loaded, process: WorkerProcess, connection: Connection
    ) -> None:
        self._engine = engine
        self._config = config
        self._info = loaded.info
        self._concurrency = loaded.concurrency
        self._process = process
        self._connection = connection
        self._end = Once(self._ended)

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def concurrency(self) -> int:
        return self._concurrency

    @property
    def pid(self) -> int:
        """Process id of the worker's supervisor, which leads its session."""
        return self._process.pid

    async def _call(self, method: str, kind: Any = None, **arguments: Any) -> Any:
        return (await self._connection.call(method, kind, **arguments))[1]

    # -- requests ---------------------------------------------------------------------------------

    async def prepare(self, request: GenerateRequest, flow: int, *, admitted: bool = False) -> Prepared:
        fields = request.to_dict()
        id_, _ = await self._connection.call("prepare", request=fields, flow=flow, admitted=admitted)
        return Prepared(request, id_, flow, admitted)

    def forget(self, prepared: Prepared) -> None:
        self._connection.tell("forget", prepared=prepared.payload)

    async def run(self, prepared: Prepared) -> Completion:
        return await self._call("run", Completion, prepared=prepared.payload)

    async def generate(self, request: GenerateRequest, flow: int) -> Completion:
        fields = request.to_dict()
        return await self._call("generate", Completion, request=fields, flow=flow)

    @asynccontextmanager
    async def admit(self, count: int) -> AsyncGenerator[None]:
        id_, _ = await self._connection.call("admit", count=count)
        try:
            yield
        finally:
            self._connection.tell("leave", admission=id_)

    async def stream(self, request: GenerateRequest, flow: int) -> ChunkStream:
        fields = request.to_dict()
        return _Chunks(self._connection, *await self._connection.open(request=fields, flow=flow))

    # -- text, scores, vectors --------------------------------------------------------------------

    async def score(self, prompt: Prompt, logprobs: int) -> Score:
        return await self._call("score", Score, prompt=prompt, logprobs=logprobs)

    async def embed(self, prompt: Prompt) -> Embedding:
        return await self._call("embed", Embedding, prompt=prompt)

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool, template: Mapping[str, Any]) -> list[int]:
        return await self._call(
            "tokenize", list[int], prompt=prompt, add_special_tokens=add_special_tokens, template=dict(template)
        )

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return await self._call("detokenize", str, token_ids=list(token_ids), skip_special_tokens=skip_special_tokens)

    async def apply_chat_template(self, messages: Sequence[Message], template: Mapping[str, Any]) -> str:
        return await self._call("apply_chat_template", str, messages=list(messages), template=dict(template))

    # -- the engine as a whole --------------------------------------------------------------------

    async def stats(self) -> EngineStats:
        return await self._call("stats", EngineStats)

    async def health(self) -> None:
        await self._call("health")

    async def sleep(self) -> None:
        await self._call("sleep")

    async def wake(self) -> None:
        await self._call("wake")

    async def load_lora(self, name: str, source: str) -> None:
        await self._call("load_lora", name=name, source=source)

    async def unload_lora(self, name: str) -> None:
        await self._call("unload_lora", name=name)

    async def reset_prefix_cache(self) -> None:
        await self._call("reset_prefix_cache")

    async def close(self) -> None:
        await self._end()

    async def _ended(self) -> None:
        self._process.closing()
        goodbye: asyncio.Future[Any] | None = None
        if self._connection.error is None:
            # The engine closes itself; one that fails to, or takes too long, is ended with its worker.
            goodbye = asyncio.ensure_future(self._call("close"))
            await asyncio.wait([goodbye], timeout=_GRACE)
            if not goodbye.done() or goodbye.exception() is not None:
                self._process.kill()
        await self._connection.close(
            EngineClosed(f"the engine {self._engine} was closed; load a new one", engine=self._engine)
        )
        if goodbye is not None:
            await asyncio.gather(goodbye, return_exceptions=True)  # hung up on, it has ended
        await self._process.gone(_GRACE)
