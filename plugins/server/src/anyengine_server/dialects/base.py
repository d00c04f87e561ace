"""What every dialect says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from anyengine.errors import EngineStartupError, InvalidConfig, UnsupportedParameter
from anyengine.outputs import TokenLogprobs
from anyengine.stats import EngineStats
from msgspec import Struct

from anyengine_server.errors import answer_error
from anyengine_server.sequence import Reason

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest
    from anyengine.capabilities import Capabilities
    from anyengine.errors import AnyEngineError

    from anyengine_server.client import EventStream, ServerClient
    from anyengine_server.errors import Answer
    from anyengine_server.options import ServerOptions
    from anyengine_server.sse import Event

__all__ = ["Card", "Dialect", "ModelList", "Piece", "ServerFacts", "check_temperature"]


class Card(Struct):
    """An entry of ``/v1/models``."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(Struct):
    """Answer of ``/v1/models``."""

    data: list[Card]


class ServerFacts(Struct, kw_only=True):
    """What a running server says about itself.

    Attributes:
        model: name of the model there.
        max_model_len: its context; None where it does not say.
        loras: names of its adapters.
        raw_logprobs: whether log-probabilities were seen to be the model's own; None where it does not matter.
        max_logprobs: most alternatives that it gives.
    """

    model: str
    max_model_len: int | None = None
    loras: tuple[str, ...] = ()
    raw_logprobs: bool | None = None
    max_logprobs: int = 0


class Piece(Struct, gc=False):
    """What one event, or one whole answer, brings.

    Attributes:
        token_ids: new tokens.
        logprobs: one entry a token, if asked for.
        reason: why it ends here, if it does.
        prompt_logprobs: one entry a prompt token, if asked for.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    reason: Reason | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Dialect(ABC):
    """A server's way of speaking. Stateless: one object serves every engine.

    Attributes:
        name: of the engine.
        path: that is asked to generate.
    """

    name: str
    path: str

    @abstractmethod
    def capabilities(self, facts: ServerFacts | None = None) -> Capabilities:
        """What can be honoured over HTTP: of such servers in general, or of one."""

    @abstractmethod
    def check(self, request: TokenRequest) -> None:
        """Refuse values that the server would alter or misread.

        Raises:
            UnsupportedParameter, InvalidRequest: names the field.
        """

    @abstractmethod
    def body(self, request: TokenRequest, facts: ServerFacts, *, stream: bool) -> dict[str, Any]:
        """What is sent."""

    @abstractmethod
    def piece(self, events: EventStream, event: Event, request: TokenRequest) -> Piece | None:
        """What an event brings; None for nothing.

        Raises:
            MalformedAnswer: it is no event of such a server.
            AnyEngineError: the event says that something went wrong.
        """

    def whole(self, answer: bytes, request: TokenRequest) -> Piece:
        """What an answer that is no stream brings; only for dialects with prompt log-probabilities."""
        raise NotImplementedError

    def in_one_piece(self, request: TokenRequest) -> bool:
        """Whether the request can only be answered whole."""
        return request.prompt_logprobs is not None

    def error(self, answer: Answer) -> AnyEngineError:
        """The error for an answer, or an event, that refuses or fails."""
        return answer_error(answer.with_own_status())

    async def learn(self, client: ServerClient, options: ServerOptions, model: str) -> ServerFacts:
        """Ask the server about itself.

        Args:
            client: to it.
            options: may name the model there.
            model: as the caller named it.
        """
        cards = (await client.get_json("/v1/models", ModelList)).data
        card = _chosen(cards, options.served_model, model)
        loras = tuple(other.id for other in cards if other.parent == card.id)
        return ServerFacts(model=card.id, max_model_len=card.max_model_len, loras=loras)

    async def tokenize(self, client: ServerClient, facts: ServerFacts, text: str) -> list[int] | None:  # noqa: ARG002
        """The server's own tokens of a text, without added ones; None where it has no such call."""
        return None

    async def stats(self, client: ServerClient) -> EngineStats:  # noqa: ARG002 the default has nothing
        """What the server reports of itself, all its clients together."""
        return EngineStats()


def _chosen(cards: list[Card], wanted: str | None, model: str) -> Card:
    """The card of the model that is meant."""
    own = [card for card in cards if card.parent is None] or cards
    names = {card.id: card for card in own}
    if wanted is not None:
        if wanted not in names:
            raise InvalidConfig(
                f"native.served_model: the server has no model {wanted!r}; it has {', '.join(names) or 'none'}",
                field="native.served_model",
            )
        return names[wanted]
    if len(own) == 1:
        return own[0]
    for card in own:
        if model in {card.id, card.root}:
            return card
    if not own:
        raise EngineStartupError("the server has no model yet")
    raise InvalidConfig(
        f"native.served_model: the server has several models, say which: {', '.join(names)}",
        field="native.served_model",
    )


def check_temperature(name: str, temperature: float, lowest: float, highest: float) -> None:
    """Refuse a temperature that the engine would raise or refuse.

    Raises:
        UnsupportedParameter: it is neither 0 nor within the bounds.
    """
    if 0 < temperature < lowest or temperature > highest:
        raise UnsupportedParameter(
            f"sampling.temperature: {temperature} is outside what {name} takes as it is: 0, or {lowest} to {highest}",
            field="sampling.temperature",
        )
