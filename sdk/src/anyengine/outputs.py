"""What comes back: completions, chunks of a stream, log-probabilities, usage, timings.

These move per token, so they are ``msgspec`` structs: cheap to make, and JSON through ``msgspec.json.encode``.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Chunk", "Completion", "Embedding", "Finish", "FinishReason", "Score", "Timings", "TokenLogprobs", "Usage"]

#: ``stop``: a stop string or token, named in ``stop_reason``. ``length``: ``max_tokens`` or the context is full.
#: ``abort``: the caller, or a shutdown, ended it. Errors and timeouts are exceptions, not reasons.
FinishReason = Literal["stop", "length", "abort"]


class TokenLogprobs(Struct, frozen=True, gc=False):
    """Log-probability of one token, in nats, in the model's raw distribution (before sampling parameters).

    Attributes:
        token_id: the token that was chosen (or stood in the prompt).
        logprob: its log-probability; at most 0.
        top: token id → log-probability, most likely first: the ``k`` most likely tokens and the chosen one.
    """

    token_id: int
    logprob: float
    top: dict[int, float]


class Usage(Struct, frozen=True, gc=False):
    """Token counts of one completion.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: always ``len(token_ids)``; what the engine ran ahead is not counted.
        cached_tokens: prompt tokens whose keys and values came from the prefix cache; None if the engine does not say.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(Struct, frozen=True, gc=False):
    """Durations in seconds on a monotonic clock, measured where the engine runs, from the moment of the call.

    Attributes:
        queue: until the request was handed to the engine.
        time_to_first_token: until the first token; None if there was none, or if it was not seen: ``generate`` takes
            the engine's final result where nothing (a stop string, a timeout) has to be watched on the way.
        total: until the end.
    """

    queue: float
    time_to_first_token: float | None
    total: float


class Finish(Struct, frozen=True, gc=False):
    """The end of a completion.

    Attributes:
        reason: see :data:`FinishReason`.
        stop_reason: with ``stop``: the stop string, or the id of the stop or end-of-sequence token.
        usage: token counts.
        timings: durations.
        seed: of the random stream, so that the draw can be repeated; None where the engine chose and does not say.
        prompt_logprobs: one entry a prompt token, the first None; only if asked for.
    """

    reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings
    seed: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Chunk(Struct, frozen=True, gc=False):
    """What is new in a stream. The last chunk of a completion, and only it, has ``finish``.

    Attributes:
        text: new text; may be empty while a character or a possible stop string is incomplete.
        token_ids: new tokens, in order; every token appears in exactly one chunk.
        logprobs: one entry a token, only if asked for.
        index: which of the ``n`` completions.
        finish: None except in the last chunk.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    index: int = 0
    finish: Finish | None = None


class Completion(Struct, frozen=True):
    """A whole answer.

    Attributes:
        text: decoding of ``token_ids`` without the token or string that stopped it (see ``include_stop``).
        token_ids: what the model produced, up to and including the token that completed the stop.
        prompt_token_ids: what the model was given.
        finish_reason: see :data:`FinishReason`.
        stop_reason: with ``stop``: the stop string, or the id of the stop or end-of-sequence token.
        usage: token counts; ``usage.completion_tokens == len(token_ids)``.
        timings: durations.
        seed: of the random stream, so that the draw can be repeated.
        logprobs: one entry a token, only if asked for.
        prompt_logprobs: one entry a prompt token, the first None; only if asked for.
        index: which of the ``n`` completions.
        alternatives: with ``n`` above 1, the other completions of this prompt.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings
    seed: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    index: int = 0
    alternatives: list[Completion] = []

    @property
    def choices(self) -> list[Completion]:
        """All ``n`` completions of the prompt, this one first."""
        return [self, *self.alternatives]


class Score(Struct, frozen=True):
    """Teacher-forced log-probabilities: each token given those before it.

    Attributes:
        token_ids: what was scored, length n.
        entries: length n; the first is None (nothing comes before it).
    """

    token_ids: list[int]
    entries: list[TokenLogprobs | None]

    @property
    def logprobs(self) -> list[float]:
        """Log-probability of each token but the first, in nats; length n - 1."""
        return [entry.logprob for entry in self.entries if entry is not None]

    @property
    def total(self) -> float:
        """Their sum, in nats."""
        return sum(self.logprobs)


class Embedding(Struct, frozen=True):
    """A text as a vector.

    Attributes:
        vector: the model's pooled output, scaled to length 1.
        prompt_token_ids: the tokens of the text.
    """

    vector: list[float]
    prompt_token_ids: list[int]
