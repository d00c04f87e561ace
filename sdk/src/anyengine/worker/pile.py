"""What came of one sequence while nobody took it, made one again when somebody does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyengine.outputs import Chunk, Finish, TokenLogprobs
    from anyengine.worker.protocol import ChunkItem

__all__ = ["Pile"]


class Pile:
    """Grows in place: merged anew with each chunk, a long answer that nobody reads would cost its length squared."""

    __slots__ = ("_texts", "finish", "logprobs", "token_ids")

    def __init__(self, first: Chunk | ChunkItem) -> None:
        self._texts = [first.text]
        self.token_ids = [*first.token_ids]  # a copy: others may hold theirs
        self.logprobs: list[TokenLogprobs] | None = None if first.logprobs is None else [*first.logprobs]
        self.finish: Finish | None = first.finish

    def add(self, more: Chunk | ChunkItem) -> None:
        """Put the next one on it."""
        self._texts.append(more.text)
        self.token_ids += more.token_ids
        if more.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += more.logprobs
        self.finish = more.finish

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)
