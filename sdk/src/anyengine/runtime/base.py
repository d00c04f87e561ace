"""What :class:`anyengine.Engine` needs of the place where its engine runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from anyengine.backend import BackendInfo
    from anyengine.outputs import Chunk, Completion, Embedding, Score
    from anyengine.request import GenerateRequest, Message, Prompt
    from anyengine.stats import EngineStats

__all__ = ["ChunkStream", "Prepared", "Runtime"]


class ChunkStream(Protocol):
    """One request's chunks. Nothing reaches the engine before the first ``__anext__``."""

    def __aiter__(self) -> ChunkStream: ...

    async def __anext__(self) -> Chunk: ...

    @property
    def ended(self) -> bool:
        """Whether the engine holds nothing of the request, so that there is nothing left to close."""
        ...

    async def aclose(self) -> None:
        """Abort what still runs; when this returns the engine holds nothing of the request. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed every check; it may be generated any number of times, until it is forgotten.

    Attributes:
        request: as the caller gave it.
        payload: what the runtime made of it; only the runtime that made it reads it.
        flow: calls are served in turn; all prompts of one call are one flow.
        admitted: whether the call as a whole holds a place in the queue already (see :meth:`Runtime.admit`).
    """

    request: GenerateRequest
    payload: Any
    flow: int
    admitted: bool = False


class Runtime(ABC):
    """An engine with its text layer. Errors are of :mod:`anyengine.errors` only."""

    @property
    @abstractmethod
    def info(self) -> BackendInfo:
        """What was loaded."""

    @property
    def pid(self) -> int | None:
        """Process that leads the engine's own; None in the application's process."""
        return None

    @property
    @abstractmethod
    def concurrency(self) -> int:
        """Sequences that it pays to hand over at once; more would only wait."""

    @abstractmethod
    async def prepare(self, request: GenerateRequest, flow: int, *, admitted: bool = False) -> Prepared:
        """Check a request and turn its prompt into tokens; nothing is submitted.

        Raises:
            InvalidRequest, UnsupportedParameter, UnsupportedCapability: it cannot be honoured.
        """

    @abstractmethod
    def forget(self, prepared: Prepared) -> None:
        """Say that a prepared request will not be generated again."""

    @abstractmethod
    def admit(self, count: int) -> AbstractAsyncContextManager[None]:
        """Room in the queue for a call of many prompts, of which each makes ``count`` sequences, while it lasts.

        Raises (on entering):
            Overloaded: there is none.
        """

    @abstractmethod
    async def stream(self, request: GenerateRequest, flow: int) -> ChunkStream:
        """Check a request as ``prepare`` does, and reserve a place for it; see :class:`ChunkStream`."""

    @abstractmethod
    async def run(self, prepared: Prepared) -> Completion:
        """Generate to the end. Cancelling aborts the request in the engine before the cancellation goes on."""

    @abstractmethod
    async def generate(self, request: GenerateRequest, flow: int) -> Completion:
        """``prepare`` and ``run`` in one: an engine in its own process is called once."""

    @abstractmethod
    async def score(self, prompt: Prompt, logprobs: int) -> Score:
        """Teacher-forced log-probabilities."""

    @abstractmethod
    async def embed(self, prompt: Prompt) -> Embedding:
        """A text as a vector."""

    @abstractmethod
    async def load_lora(self, name: str, source: str) -> None:
        """Load an adapter from a folder or the hub."""

    @abstractmethod
    async def unload_lora(self, name: str) -> None:
        """Forget an adapter."""

    @abstractmethod
    async def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""

    @abstractmethod
    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool, template: Mapping[str, Any]) -> list[int]:
        """The ids that the model would be given."""

    @abstractmethod
    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids."""

    @abstractmethod
    async def apply_chat_template(self, messages: Sequence[Message], template: Mapping[str, Any]) -> str:
        """The prompt that the model's chat template makes of a chat."""

    @abstractmethod
    async def stats(self) -> EngineStats:
        """A snapshot of the engine and of the queue before it."""

    @abstractmethod
    async def health(self) -> None:
        """Return if the engine works, else raise."""

    @abstractmethod
    async def sleep(self) -> None:
        """Release device memory."""

    @abstractmethod
    async def wake(self) -> None:
        """Come back from sleep."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything. Idempotent."""
