"""The hook manual: every hook of anyengine, who implements it, when it is called, and what it promises.

Two sets, both `pluggy <https://pluggy.readthedocs.io>`_ hook specifications of the project ``anyengine``:

*Engine hooks* are implemented by engine plugins, at token level, and run where the engine lives. Subclass
:class:`anyengine.backend.EnginePlugin` and :class:`anyengine.backend.Backend`; their methods of these names are the
implementations, no marker needed. One engine, one implementation: the first result counts.

*Extension hooks* are implemented by extensions, at text level, in the application's process. An extension is an object
with methods marked ``@hookimpl(wrapper=True)``, plain generators round the call; see :class:`ExtensionHooks`.

Hooks are called once per load, request or stats call, never per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence
    from pathlib import Path

    from anyengine.backend import Backend, EngineDescription, QuantizeJob, QuantizeReport, TokenDelta, TokenRequest
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Chunk, Completion, Embedding, Score
    from anyengine.request import GenerateRequest
    from anyengine.stats import EngineStats

__all__ = ["PROJECT", "EngineHooks", "ExtensionHooks", "hookimpl", "hookspec"]

PROJECT = "anyengine"
hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a method as the implementation of a hook. Extensions need it: ``@hookimpl(wrapper=True)``.
hookimpl = pluggy.HookimplMarker(PROJECT)


class EngineHooks:
    """Implemented by an engine plugin and by the backend that it loads."""

    # -- discovery and loading: the plugin object -------------------------------------------------

    @hookspec(firstresult=True)
    def describe(self) -> EngineDescription:
        """Say what the engine is and can do.

        Called at discovery, often, in processes that never load the engine: it must be quick, import no engine, and
        not raise; an engine that cannot run here says why in ``unavailable``.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load(self, config: EngineConfig, model: ModelFiles) -> Awaitable[Backend]:
        """Bring the model up. Called once an engine; ready when the awaitable returns.

        The fields of ``config`` that differ from their defaults are all among the declared capabilities; the SDK has
        refused the others. On failure everything is released before the error leaves.

        :param config: the validated configuration.
        :param model: the checkpoint, resolved and on disk.
        :raises UnsupportedParameter: a field cannot be honoured with this model or device.
        :raises ModelNotFound: the checkpoint is unusable.
        :raises OutOfMemory: memory does not suffice.
        :raises EngineStartupError: anything else.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def quantize(self, job: QuantizeJob) -> Awaitable[QuantizeReport]:
        """Make a quantised checkpoint out of another. Offline: no engine is loaded.

        The SDK has looked the source over, and drawn the calibration sequences. Afterwards it measures the drift,
        writes the manifest, and moves the folder to where the caller wants it.

        :param job: source, scheme, calibration, and the empty folder to write into.
        :raises UnsupportedCapability: the engine cannot quantise.
        :raises UnsupportedParameter: not this model.
        """
        raise NotImplementedError

    # -- per request: the backend -----------------------------------------------------------------

    @hookspec(firstresult=True)
    def validate(self, request: TokenRequest) -> None:
        """Refuse a request that the declared capabilities cannot tell apart. Nothing has been submitted yet.

        :param request: a resolved request.
        :raises UnsupportedParameter: this engine cannot honour a value.
        :raises InvalidRequest: a value is wrong for this model.
        """

    @hookspec(firstresult=True)
    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Generate, and yield what is new; the last delta, and only it, carries the finish.

        The SDK reads the iterator in one task, and calls ``abort`` itself when a stream is left early; it never relies
        on a generator being finalised.

        :param request: a resolved, validated request.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def generate(self, request: TokenRequest) -> Awaitable[TokenDelta]:
        """Generate, and return everything at once. The default drains the backend's own ``stream``.

        :param request: a resolved, validated request.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def score(self, token_ids: Sequence[int], logprobs: int) -> Awaitable[Score]:
        """Compute the log-probability of each token given those before it (a capability).

        :param token_ids: at least 2, within the context.
        :param logprobs: alternatives a position.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def embed(self, token_ids: Sequence[int]) -> Awaitable[Embedding]:
        """Embed a text (a capability, with ``EngineConfig.task="embed"``).

        :param token_ids: at least 1, within the context.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def abort(self, request_id: str) -> Awaitable[None]:
        """End a request now; when the awaitable returns its cache is free. Idempotent.

        :param request_id: ``id`` of the request; an unknown or finished one is fine.
        """
        raise NotImplementedError

    # -- the engine as a whole: the backend -------------------------------------------------------

    @hookspec(firstresult=True)
    def stats(self) -> Awaitable[EngineStats]:
        """Take a snapshot. At any time, also under load; None for what the engine does not report."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def health(self) -> Awaitable[None]:
        """Return if the engine works.

        :raises EngineDied: it is gone.
        :raises EngineUnresponsive: it does not answer.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def sleep(self) -> Awaitable[None]:
        """Release device memory, keeping the means to come back (a capability). Idempotent."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def wake(self) -> Awaitable[None]:
        """Come back from ``sleep``. Idempotent."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def load_lora(self, name: str, path: Path) -> Awaitable[None]:
        """Load a low-rank adapter (the capability ``dynamic_lora``).

        :param name: not loaded yet.
        :param path: its folder, looked over by the SDK.
        :raises UnsupportedParameter: it does not fit the model or the engine's limits.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def unload_lora(self, name: str) -> Awaitable[None]:
        """Forget a loaded adapter (the capability ``dynamic_lora``).

        :param name: a loaded one.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def reset_prefix_cache(self) -> Awaitable[None]:
        """Forget every cached prefix (a capability)."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def close(self) -> Awaitable[None]:
        """Release everything; open streams end with reason ``abort``. Idempotent, also after a failed ``load``."""
        raise NotImplementedError


class ExtensionHooks:
    """Wrapped by extensions: tracing, caching, guardrails, budgets.

    pluggy wrappers are plain generators (``async def`` is rejected): ``yield`` gives the awaitable or the iterator of
    what lies inside, not started yet, and what the wrapper returns takes its place. To do something round the
    operation, return a coroutine or an asynchronous generator of your own::

        class Shout:
            @hookimpl(wrapper=True)
            def generate(self):
                inner = yield

                async def shouted():
                    answer = await inner
                    return msgspec.structs.replace(answer, text=answer.text.upper())

                return shouted()

            @hookimpl(wrapper=True)
            def stream(self):
                inner = yield

                async def shouted():
                    async with aclosing(inner):
                        async for chunk in inner:
                            yield msgspec.structs.replace(chunk, text=chunk.text.upper())

                return shouted()

    The outermost extension is the one named first. An extension that answers by itself never awaits or iterates
    ``inner``; then nothing reaches the engine.
    """

    @hookspec(firstresult=True)
    def load(self, engine: str, config: EngineConfig, inner: Awaitable[None]) -> Awaitable[None]:
        """Wrap the loading of the engine; here ``inner`` must be awaited, there is no answer without it.

        :param engine: name of the engine.
        :param config: the validated configuration.
        :param inner: the loading itself, not begun; what ``yield`` gives unless another extension stands between.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def generate(
        self, engine: str, model: str, request: GenerateRequest, inner: Awaitable[Completion]
    ) -> Awaitable[Completion]:
        """Wrap one prompt's generation. A list of prompts is as many calls.

        :param engine: name of the engine.
        :param model: name of the model, as it was loaded.
        :param request: the validated request.
        :param inner: the generation itself, not begun.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def stream(
        self, engine: str, model: str, request: GenerateRequest, inner: AsyncIterator[Chunk]
    ) -> AsyncIterator[Chunk]:
        """Wrap one stream. ``aclose`` of the iterator is called when the stream is left early.

        :param engine: name of the engine.
        :param model: name of the model, as it was loaded.
        :param request: the validated request.
        :param inner: the stream itself, not begun.
        """
        raise NotImplementedError
