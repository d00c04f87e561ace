"""The two classes that an engine plugin subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from msgspec import Struct, field

from anyengine._typed import ill_typed
from anyengine.backend.checkpoints import CheckpointSupport
from anyengine.backend.types import TokenDelta
from anyengine.backend.weights import SAFETENSORS
from anyengine.capabilities import Capabilities
from anyengine.errors import PluginError, UnsupportedCapability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from anyengine.backend.checkpoints import QuantizeJob, QuantizeReport
    from anyengine.backend.types import TokenRequest
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Embedding, Score
    from anyengine.stats import EngineStats

__all__ = [
    "Backend",
    "BackendInfo",
    "EngineDescription",
    "EnginePlugin",
    "EnvironmentVariant",
    "PipStep",
]


class PipStep(Struct, frozen=True):
    """One run of ``pip install``.

    Attributes:
        requirements: what is installed, pinned (``torch==2.13.0``).
        no_deps: install just these, not what they depend on.
    """

    requirements: tuple[str, ...]
    no_deps: bool = False


class EnvironmentVariant(Struct, frozen=True, kw_only=True):
    """A tested set of packages that the engine runs with; ``anyengine env create`` makes an environment of it.

    Attributes:
        python: version specifier (PEP 440) of the interpreters that it was tested on.
        steps: what pip installs, in this order, beside the SDK and the plugin.
        platform: ``sys.platform`` that the packages are built for; None for any.
        tested: where and when this set was seen to run, in words.
        quantize: whether it is the toolchain of :meth:`EnginePlugin.quantize`, where that cannot share an environment
            with the engine.
    """

    python: str
    steps: tuple[PipStep, ...]
    platform: str | None = None
    tested: str = ""
    quantize: bool = False


class EngineDescription(Struct, frozen=True, kw_only=True):
    """What a plugin says about its engine without importing it.

    Attributes:
        name: of the engine, as users write it.
        plugin_version: of the plugin's distribution.
        engine_version: of the engine library; None if it is not installed here.
        unavailable: why the engine cannot run in this interpreter; None if it can. The SDK adds which command makes a
            place for it, from ``environments``.
        in_process: whether it is safe to run in the application's process.
        attaches: whether ``native={"url": …}`` attaches to an engine that runs already, as a server: then nothing of it
            has to be installed here, and it is spoken to from the application's process.
        capabilities: of the engine in general; narrowed by the backend after a load.
        models: name → folder of the models that come with the plugin.
        default_model: the one of them that is loaded if none is named.
        environments: variant (``cpu``, ``cuda``) → the packages to make an environment of; the first is the default.
        checkpoints: what it loads; None where the plugin does not say, and the engine itself refuses what it must.
        weights: patterns of the files that it reads weights from, in the checkpoint's folder: ``*.gguf``, or
            ``onnx/*.onnx``. A checkpoint with none of them is refused before a load, and of one on a hub they are what
            is fetched. Patterns that let pickled weights in are refused; ``.bin`` files of another format are named by
            how that names them (``openvino_*.bin``).
    """

    name: str
    plugin_version: str
    engine_version: str | None = None
    unavailable: str | None = None
    in_process: bool = False
    attaches: bool = False
    capabilities: Capabilities
    models: dict[str, str] = field(default_factory=dict[str, str])
    default_model: str | None = None
    environments: dict[str, EnvironmentVariant] = field(default_factory=dict[str, EnvironmentVariant])
    checkpoints: CheckpointSupport | None = None
    weights: tuple[str, ...] = SAFETENSORS

    def attached(self, config: EngineConfig) -> bool:
        """Whether this configuration is of an engine that runs already."""
        return self.attaches and "url" in config.native


class BackendInfo(Struct, frozen=True, kw_only=True):
    """What a loaded backend says about itself.

    Attributes:
        capabilities: narrowed to this model, device and configuration.
        max_model_len: context in tokens, prompt and completion together.
        vocab_size: token ids below this can be generated.
        max_num_seqs: sequences that run at once; None where the engine does not say.
        dtype: of the weights, or what quantised ones are computed in, in the spelling of ``EngineConfig.dtype``; None
            where the engine does not say.
        device: in the engine's words.
        loras: names of the loaded adapters.
    """

    capabilities: Capabilities
    max_model_len: int
    vocab_size: int
    max_num_seqs: int | None = None
    dtype: str | None = None
    device: str | None = None
    loras: tuple[str, ...] = ()


class EnginePlugin(ABC):
    """The light object behind an entry point of the group ``anyengine.engines``.

    It must import quickly and without its engine. The methods are hook implementations: see
    :mod:`anyengine.hookspecs` for each contract.
    """

    @abstractmethod
    def describe(self) -> EngineDescription:
        """Say what the engine is and can do, without importing it. Must not raise."""

    @abstractmethod
    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        """Bring the model up; it is ready when this returns.

        Args:
            config: validated, and within the declared capabilities; every field that differs from its default must
                be honoured or refused.
            model: the resolved checkpoint.

        Raises:
            UnsupportedParameter: a field cannot be honoured with this model or device.
            ModelNotFound: the checkpoint is unusable.
            OutOfMemory: memory does not suffice.
            EngineStartupError: anything else; all that was taken is released.
        """

    async def quantize(self, job: QuantizeJob) -> QuantizeReport:  # noqa: ARG002 the default refuses
        """Write a quantised checkpoint into ``job.output``.

        Computation must not block the event loop: the worker would be taken for hung. What was begun has ended when
        this returns or raises, also when it is cancelled: nothing may be written after that.

        Raises:
            UnsupportedCapability: the engine cannot quantise (the default).
            UnsupportedParameter: not this model.
            ModelNotFound: the source is damaged.
        """
        raise UnsupportedCapability(
            f"{self.describe().name} cannot quantize", capability="quantize", engine=self.describe().name
        )


class Backend(ABC):
    """A loaded engine. Methods run on one asyncio event loop; computation must not block it.

    Guarantees asked of every backend:

    1. ``stream`` yields deltas; the last one, and only it, has ``finish``; then the iterator ends.
    2. A token is yielded once, in order, the terminating one included; nothing follows a terminator or ``max_tokens``.
    3. After ``abort(id)`` returns, the request computes nothing more and its cache is free; a stream still being read
       ends with reason ``abort``, within ``health_timeout`` at the latest.
    4. A failure of one request is raised from its own iterator and harms no other.
    5. ``close`` is idempotent, works after a failed load, and leaves nothing behind.

    The SDK holds a backend to this while it runs: a missing or early finish, tokens after a terminator or beyond
    ``max_tokens``, log-probabilities that are missing or unasked for, a value of the wrong type anywhere in a result
    (``3.0``, ``True`` or a number of NumPy's as a token id), a cancellation that is the engine's own, and any exception
    that is not one of ours become :class:`~anyengine.errors.PluginError` in the request that they happen in.
    """

    @property
    @abstractmethod
    def info(self) -> BackendInfo:
        """What was loaded; constant."""

    def validate(self, request: TokenRequest) -> None:  # noqa: B027 most engines have nothing to add
        """Refuse what the declared capabilities cannot express; called before anything of the call is submitted.

        Raises:
            UnsupportedParameter: this engine cannot honour a value.
            InvalidRequest: a value is wrong for this model.
        """

    @abstractmethod
    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Generate, and yield what is new.

        Raises (from the iterator):
            EngineDied, EngineUnresponsive, OutOfMemory: the engine failed.
        """

    async def generate(self, request: TokenRequest) -> TokenDelta:
        """Generate, and return everything as one delta. The default drains :meth:`stream`."""
        total = TokenDelta([], None if request.logprobs is None else [])
        async for delta in self.stream(request):
            try:
                total.token_ids += delta.token_ids
                if total.logprobs is not None:
                    total.logprobs += delta.logprobs or []
                total.finish = delta.finish
            except (AttributeError, TypeError) as error:
                wrong = ill_typed(delta, TokenDelta) or f"{delta!r}, not a TokenDelta"
                raise PluginError(f"the stream of {type(self).__name__} gave {wrong}") from error
        if total.finish is None:
            raise PluginError(f"the stream of {type(self).__name__} ended without a finish")
        return total

    @abstractmethod
    async def abort(self, request_id: str) -> None:
        """End a request now, within ``health_timeout``. Idempotent; unknown and finished ids are fine."""

    @abstractmethod
    async def stats(self) -> EngineStats:
        """Take a snapshot; None for what the engine does not report."""

    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:  # noqa: ARG002 the default refuses
        """Teacher-forced log-probabilities.

        Args:
            token_ids: length n, at least 2 and within the context.
            logprobs: alternatives a position.
        """
        raise UnsupportedCapability(f"{type(self).__name__} cannot score", capability="score")

    async def embed(self, token_ids: Sequence[int]) -> Embedding:  # noqa: ARG002 the default refuses
        """Embed a text; only with ``EngineConfig.task="embed"``.

        Args:
            token_ids: length n, at least 1 and within the context.

        Returns:
            The model's pooled output as a vector of length 1.
        """
        raise UnsupportedCapability(f"{type(self).__name__} cannot embed", capability="embed")

    async def load_lora(self, name: str, path: Path) -> None:  # noqa: ARG002 the default refuses
        """Load a low-rank adapter, for requests to name.

        Args:
            name: not loaded yet.
            path: folder with ``adapter_config.json`` and weights, looked over by the SDK: safetensors, or what
                :attr:`EngineDescription.weights` names.

        Raises:
            UnsupportedParameter: it does not fit the model, or the limits that the engine was loaded with.
        """
        raise UnsupportedCapability(f"{type(self).__name__} cannot load adapters", capability="dynamic_lora")

    async def unload_lora(self, name: str) -> None:  # noqa: ARG002 the default refuses
        """Forget a loaded adapter; requests that use it have ended."""
        raise UnsupportedCapability(f"{type(self).__name__} cannot unload adapters", capability="dynamic_lora")

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; what running requests hold stays."""
        raise UnsupportedCapability(
            f"{type(self).__name__} cannot reset its prefix cache", capability="reset_prefix_cache"
        )

    async def health(self) -> None:  # noqa: B027 an engine in this process lives while we do
        """Return if the engine works: ask the engine itself, down to the process that computes.

        A worker calls it every few seconds while requests run, and takes one that does not return within
        ``EngineConfig.health_timeout`` for a hang.

        Raises:
            EngineDied, EngineUnresponsive: it does not.
        """

    async def sleep(self) -> None:
        """Release device memory, keeping the means to come back; running requests must have ended."""
        raise UnsupportedCapability(f"{type(self).__name__} cannot sleep", capability="sleep")

    async def wake(self) -> None:
        """Come back from :meth:`sleep`."""
        raise UnsupportedCapability(f"{type(self).__name__} cannot sleep", capability="sleep")

    @abstractmethod
    async def close(self) -> None:
        """Release everything; open streams end with ``abort``. Idempotent."""
