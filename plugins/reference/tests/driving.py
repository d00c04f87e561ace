"""Stepping :class:`Core` by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyengine.backend import DeltaCollector, TokenDelta, TokenFinish, TokenRequest
from anyengine.errors import AnyEngineError
from anyengine.request import SamplingParams
from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache
from anyengine_reference.sampling import Sampler
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyengine.outputs import TokenLogprobs
    from anyengine_reference.model import Model
    from anyengine_reference.speculation import Proposer
    from anyengine_reference.structured import Constraint

BIG_POOL = 256


@dataclass
class Result:
    """Everything that was delivered for one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    deltas: int = 0
    finish: TokenFinish | None = None
    error: AnyEngineError | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def reason(self) -> str:
        assert self.finish is not None, self.error
        return self.finish.reason


@dataclass
class Driver:
    """An engine without its thread."""

    model: Model
    num_blocks: int = BIG_POOL
    block_size: int = 4
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    chunked_prefill: bool = True
    prefix_caching: bool = True
    num_speculative_tokens: int = 0
    proposer: Proposer | None = None

    def __post_init__(self) -> None:
        limits = Limits(
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.chunked_prefill,
            self.prefix_caching,
            self.num_speculative_tokens,
        )
        self.pool = BlockPool(self.num_blocks)
        cache = KVCache(self.model.config, self.num_blocks, self.block_size)
        self.core = Core(self.model, cache, Scheduler(self.pool, self.block_size, limits), self.proposer)
        self.results: dict[str, Result] = {}
        self._by_collector: dict[int, Result] = {}
        self._collectors: list[DeltaCollector] = []

    def add(self, wanted: TokenRequest, constraint: Constraint | None = None, *, scoring: bool = False) -> Result:
        collector = DeltaCollector()
        result = self.results[wanted.id] = self._by_collector[id(collector)] = Result()
        self._collectors.append(collector)
        sampler = Sampler(wanted, self.model.config.vocab_size)
        self.core.add(Sequence(wanted, collector, sampler, constraint, scoring=scoring))
        return result

    def step(self) -> None:
        self._take(self.core.step())

    def abort(self, request_id: str) -> None:
        self._take(self.core.abort(request_id))

    def run(self) -> None:
        while self.core.busy:
            self.step()

    def _take(self, deliveries: Iterable[tuple[DeltaCollector, TokenDelta | AnyEngineError]]) -> None:
        for collector, what in deliveries:
            result = self._by_collector[id(collector)]
            assert not result.ended, "something follows the last delta"
            if isinstance(what, AnyEngineError):
                result.error = what
                continue
            assert what.token_ids or what.finish is not None, "an empty delta that is not the last"
            result.deltas += 1
            result.token_ids += what.token_ids
            result.logprobs += what.logprobs or []
            result.finish = what.finish


def request(prompt: Iterable[int], number: int = 0, *, max_tokens: int = 8, **options: Any) -> TokenRequest:
    """A request: names of sampling parameters and of its own fields, mixed."""
    sampling = {name: options.pop(name) for name in list(options) if name in SamplingParams.model_fields}
    return TokenRequest(
        id=f"r{number}",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**{"seed": number, **sampling}),
        max_tokens=max_tokens,
        **options,
    )


def alone(model: Model, wanted: TokenRequest, constraint: Constraint | None = None, **options: Any) -> Result:
    """The request computed with nothing beside it, nothing reused, in one piece."""
    driver = Driver(model, **{"prefix_caching": False, **options})
    result = driver.add(wanted, constraint)
    driver.run()
    return result
