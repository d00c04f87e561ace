"""A backend for a server that is running already."""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
from anyengine.backend import Backend, BackendInfo, TokenDelta, TokenFinish, TokenRequest
from anyengine.backend.cancellation import despite_cancellation
from anyengine.backend.model_config import text_config
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineStartupError,
    EngineUnresponsive,
    InvalidConfig,
    Misuse,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.outputs import Score
from anyengine.request import SamplingParams
from anyengine.runtime.checks import SDK_CONFIG

from anyengine_server.client import ServerClient
from anyengine_server.options import server_options
from anyengine_server.running import RunningRequests
from anyengine_server.sequence import Sequence
from anyengine_server.tokens import prove_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from collections.abc import Sequence as SequenceOf

    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine.stats import EngineStats

    from anyengine_server.dialects import Dialect, ServerFacts

__all__ = ["AttachedBackend", "attach", "check_attached", "drain"]

#: Seconds that a health question may take; the worker has its own patience beside it.
_HEALTH_SECONDS = 30.0
#: Seconds for what a server sends behind the last token of a sequence.
_TAIL_SECONDS = 1.0


def check_attached(config: EngineConfig, engine: str, allowed: frozenset[str] = frozenset({"max_model_len"})) -> None:
    """Refuse what only the one who started the server could have set.

    Args:
        config: with ``native={"url": …}``.
        engine: its name.
        allowed: dotted names beside those that the SDK honours itself.

    Raises:
        UnsupportedParameter: names the first field.
    """
    for name in config.changed():
        if name not in SDK_CONFIG | allowed | {"native"}:
            raise UnsupportedParameter(
                f"{name}: the server at native.url runs already, with what it was started with; leave the field out",
                engine=engine,
                field=name,
                supported=allowed,
            )


async def attach(config: EngineConfig, model: ModelFiles, dialect: Dialect, *, engine: str) -> AttachedBackend:
    """Bring up a backend for ``config.native["url"]``.

    Args:
        config: everything else in it must be what the SDK honours, or ``max_model_len``.
        model: the checkpoint that the server was started with; its tokenizer is proved equal where the server can be
            asked.
        dialect: of the engine.
        engine: its name, for errors.

    Raises:
        InvalidConfig: an option that is not known or has a wrong value.
        UnsupportedParameter: a field that only a server's start can honour.
        EngineStartupError: the server cannot be reached, or is not that engine with that model.
    """
    options, rest = server_options(config.native)
    if rest:
        name = min(rest)
        raise InvalidConfig(f"native.{name}: is no option for a running server", engine=engine, field=f"native.{name}")
    check_attached(config, engine)
    client = ServerClient(options, dialect.error)
    try:
        facts = await dialect.learn(client, options, model.name)
        await prove_tokenizer(model, lambda text: dialect.tokenize(client, facts, text))
        return AttachedBackend(config, model, client, dialect, facts)
    except BaseException as error:
        await despite_cancellation(client.aclose())
        if isinstance(error, AnyEngineError) and not isinstance(error, (Misuse, EngineStartupError)):
            raise EngineStartupError(f"cannot attach to {options.url}: {error.message}", engine=engine) from error
        raise


class AttachedBackend(Backend):
    """Token level face of a running server.

    An abort closes the request's connection, which every one of these servers takes as the wish to end it; that it has
    ended there a moment later cannot be awaited.
    """

    def __init__(
        self, config: EngineConfig, model: ModelFiles, client: ServerClient, dialect: Dialect, facts: ServerFacts
    ) -> None:
        self._client = client
        self._dialect = dialect
        self._facts = facts
        self._requests = RunningRequests()
        self._ids = count()
        capabilities = dialect.capabilities(facts)
        self._info = BackendInfo(
            capabilities=capabilities,
            max_model_len=_context(config, model, facts),
            vocab_size=vocabulary_size(model),
            loras=facts.loras,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def facts(self) -> ServerFacts:
        """What the server said about itself."""
        return self._facts

    def validate(self, request: TokenRequest) -> None:
        self._dialect.check(request)

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self._requests.stream(request.id, self._deltas(request))

    async def _deltas(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        dialect = self._dialect
        if dialect.in_one_piece(request):
            yield await self._whole(request)
            return
        sequence = Sequence(request)
        async with self._client.events(dialect.path, dialect.body(request, self._facts, stream=True)) as events:
            async for event in events:
                piece = dialect.piece(events, event, request)
                if piece is None:
                    continue
                delta = sequence.take(piece.token_ids, piece.logprobs, piece.reason)
                if delta is not None:
                    yield delta
                if sequence.finished:
                    if piece.reason is not None:
                        await drain(events)
                    return
            raise events.cut_off()

    async def _whole(self, request: TokenRequest) -> TokenDelta:
        dialect = self._dialect
        answer = await self._client.post(dialect.path, dialect.body(request, self._facts, stream=False))
        piece = dialect.whole(answer, request)
        delta = Sequence(request).take(piece.token_ids, piece.logprobs, piece.reason)
        if delta is None or delta.finish is None:
            raise EngineDied("the server's answer is not complete")
        delta.finish = TokenFinish(delta.finish.reason, prompt_logprobs=piece.prompt_logprobs)
        return delta

    async def score(self, token_ids: SequenceOf[int], logprobs: int) -> Score:
        if not self._info.capabilities.score:
            raise UnsupportedCapability(f"{self._dialect.name}'s server gives no scores", capability="score")
        # A server always generates a token, for which a full context has no room: so the last one is generated, by
        # allowing no other; its log-probability is the model's own all the same.
        *prompt, last = token_ids
        request = TokenRequest(
            id=f"score-{next(self._ids)}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0, allowed_token_ids=[last]),
            max_tokens=1,
            logprobs=logprobs,
            prompt_logprobs=logprobs,
        )
        delta = await self._whole(request)
        entries = delta.finish.prompt_logprobs if delta.finish is not None else None
        if entries is None or not delta.logprobs:
            raise EngineDied("the server's answer has no log-probabilities")
        return Score(list(token_ids), [*entries, *delta.logprobs])

    async def abort(self, request_id: str) -> None:
        await self._requests.abort(request_id)

    async def stats(self) -> EngineStats:
        return await self._dialect.stats(self._client)

    async def health(self) -> None:
        started = time.monotonic()
        try:
            await self._client.get("/health", timeout=_HEALTH_SECONDS)
        except (EngineDied, EngineUnresponsive):
            raise
        except AnyEngineError as error:
            seconds = time.monotonic() - started
            raise EngineDied(f"the server says after {seconds:.1f} s that it is not well: {error.message}") from error

    async def close(self) -> None:
        await self._requests.close()  # may be done again, as the next: a close that was cancelled is finished so
        await self._client.aclose()


async def drain(events: Any) -> None:
    """Read what follows the last token, so that the connection can be used again; for a moment only."""
    with anyio.move_on_after(_TAIL_SECONDS):
        async for _ in events:
            pass


def _context(config: EngineConfig, model: ModelFiles, facts: ServerFacts) -> int:
    """The server's context, or less if asked for."""
    own = facts.max_model_len
    if own is None:
        declared: Any = text_config(model.config).get("max_position_embeddings")
        own = declared if isinstance(declared, int) else None
    wanted = config.max_model_len
    if wanted is not None and own is not None and wanted > own:
        raise InvalidConfig(f"max_model_len: {wanted} is more than the server's {own}", field="max_model_len")
    if wanted is None and own is None:
        raise InvalidConfig(
            "max_model_len: neither the server nor the checkpoint says how long its context is", field="max_model_len"
        )
    return wanted or own or 0
