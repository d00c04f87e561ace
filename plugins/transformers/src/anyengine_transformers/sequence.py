"""One request in the engine: a generator that goes on by at most one forward pass a step."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from anyengine.backend import DeltaCollector, TokenDelta, TokenFinish

from anyengine_transformers.logprobs import entries

if TYPE_CHECKING:
    from collections.abc import Generator

    from anyengine.backend import TokenRequest
    from anyengine.outputs import FinishReason, TokenLogprobs

    from anyengine_transformers.model import CausalLM, Text
    from anyengine_transformers.sampling import Sampler
    from anyengine_transformers.structured import Constraint

__all__ = ["Sequence"]

#: Rows of logits that are made at once for a prompt: bounds memory by rows, not by the text's length.
ROWS = 64


class Sequence:
    """A request, its random stream and, while it runs, its keys and values.

    Attributes:
        collector: where its deltas go.
        scoring: whether only the prompt's log-probabilities are wanted.
        arrival: number of requests that were accepted before it.
    """

    def __init__(
        self,
        request: TokenRequest,
        sampler: Sampler | None,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.collector = DeltaCollector()
        self.scoring = sampler is None
        self.arrival = 0
        self.accepted_at = monotonic()
        self.last_token_at: float | None = None
        self._sampler = sampler
        self._constraint = constraint
        self._text: Text | None = None
        self._steps: Generator[TokenDelta | None] | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts by priority, then arrival."""
        return (self.request.priority, self.arrival)

    @property
    def held(self) -> int:
        """Tokens whose keys and values are kept."""
        return 0 if self._text is None else self._text.held

    def begin(self, model: CausalLM) -> None:
        """Make ready for :meth:`step`."""
        self._text = model.text()
        self._steps = self._compute(self._text)

    def step(self) -> TokenDelta | None:
        """Go on by at most one forward pass; None if no token came of it."""
        return None if self._steps is None else next(self._steps)

    def release(self) -> None:
        """Let go of the keys and values. Nothing follows."""
        if self._steps is not None:
            self._steps.close()
        self._text = self._steps = None

    def ended(self, reason: FinishReason) -> TokenDelta:
        """A last delta without tokens."""
        return TokenDelta([], None if self.request.logprobs is None else [], TokenFinish(reason))

    def _compute(self, text: Text) -> Generator[TokenDelta | None]:
        request = self.request
        wants_prompt = request.prompt_logprobs is not None
        logits = text.feed(request.prompt_token_ids, all_rows=wants_prompt)
        prompt = None
        if wants_prompt:
            yield None
            prompt = yield from self._prompt_entries(text)
        if self._sampler is None:
            yield TokenDelta([], None, TokenFinish("length", 0, prompt))
            return
        generated: list[int] = []
        while True:
            mask = None if self._constraint is None else self._constraint.mask()
            token = self._sampler.choose(logits, generated, mask)
            generated.append(token)
            chosen = None if request.logprobs is None else entries(logits[None], [token], request.logprobs)
            reason = self._reason(token, len(generated))
            if reason is not None:
                yield TokenDelta([token], chosen, TokenFinish(reason, 0, prompt))
                return
            yield TokenDelta([token], chosen)
            if self._constraint is not None:
                self._constraint.accept(token)
            logits = text.feed([token])

    def _prompt_entries(self, text: Text) -> Generator[None, None, list[TokenLogprobs | None]]:
        """One entry a token of the prompt, the first None: nothing comes before it."""
        token_ids, top = self.request.prompt_token_ids, self.request.prompt_logprobs or 0
        made: list[TokenLogprobs | None] = [None]
        while len(made) < len(token_ids):
            first, last = len(made) - 1, min(len(made) - 1 + ROWS, len(token_ids) - 1)
            made += entries(text.rows(first, last), token_ids[first + 1 : last + 1], top)
            yield None
        text.forget_rows()
        return made

    def _reason(self, token: int, generated: int) -> FinishReason | None:
        if token in self.request.terminators:
            return "stop"
        return "length" if generated == self.request.max_tokens else None
