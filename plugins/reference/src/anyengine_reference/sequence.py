"""The state of one request in the engine."""

from __future__ import annotations

from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from anyengine.backend import TokenDelta, TokenFinish

from anyengine_reference.blocks import chain

if TYPE_CHECKING:
    from anyengine.backend import DeltaCollector, TokenRequest
    from anyengine.outputs import TokenLogprobs

    from anyengine_reference.sampling import Sampler
    from anyengine_reference.structured import Constraint

__all__ = ["Sequence"]


class Sequence:
    """One sequence: its tokens, how many of them are in the cache, and where.

    Attributes:
        tokens: prompt and completion so far.
        computed: how many of them have keys and values in the cache.
        blocks: physical blocks that cover at least ``computed`` positions.
        keys: chain of keys of the full blocks among ``tokens``, as far as it was needed.
        prompt_entries: log-probabilities of the prompt by position, if asked for; complete when the prompt is computed.
        scoring: whether only the prompt's log-probabilities are wanted.
    """

    def __init__(
        self,
        request: TokenRequest,
        collector: DeltaCollector,
        sampler: Sampler,
        constraint: Constraint | None,
        *,
        scoring: bool = False,
    ) -> None:
        self.request = request
        self.collector = collector
        self.sampler = sampler
        self.constraint = constraint
        self.scoring = scoring
        self.tokens = list(request.prompt_token_ids)
        self.prompt_length = len(self.tokens)
        self.computed = 0
        self.blocks: list[int] = []
        self.keys: list[bytes] = []
        self.cached_tokens: int | None = None
        self.prompt_entries: dict[int, TokenLogprobs] = {}
        self.arrival = 0
        self.accepted_at = monotonic()
        self.started_at: float | None = None
        self.last_token_at: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by priority, then arrival."""
        return (self.request.priority, self.arrival)

    @property
    def generated(self) -> int:
        """Tokens of the completion so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def wants_prompt(self) -> bool:
        """Whether logits of the prompt are needed, so that none of it can come from the cache."""
        return self.request.prompt_logprobs is not None

    def aborted(self) -> TokenDelta:
        """The last delta of a sequence that was never begun."""
        return TokenDelta([], None if self.request.logprobs is None else [], TokenFinish("abort"))

    def extend_keys(self, block_size: int, upto: int) -> None:
        """Work out the keys of the first ``upto`` full blocks."""
        while len(self.keys) < upto:
            start = len(self.keys) * block_size
            salt = (self.request.cache_salt or "").encode()
            parent = self.keys[-1] if self.keys else blake2b(salt, digest_size=16).digest()
            self.keys.append(chain(parent, self.tokens[start : start + block_size]))
