"""Requests and deltas at token level: what passes between the SDK and a backend."""

from __future__ import annotations

from msgspec import Struct

from anyengine.outputs import FinishReason, TokenLogprobs
from anyengine.request import SamplingParams, Structured

__all__ = ["TokenDelta", "TokenFinish", "TokenRequest"]


class TokenRequest(Struct, frozen=True, kw_only=True):
    """One sequence to generate; the SDK has resolved everything that depends on text or on the model.

    Attributes:
        id: unique among the engine's requests; ``abort`` takes it.
        prompt_token_ids: never empty, and shorter than the context.
        prompt_text: the same prompt as text, for engines without ``token_prompts``; None if the caller gave ids.
        sampling: all fields, neutral or not. ``seed`` is None only where the caller gave none and the engine declares
            that it then varies.
        max_tokens: at least 1, and within the context.
        min_tokens: no end-of-sequence or stop token before this many tokens.
        eos_token_ids: the model's end-of-sequence tokens; empty with ``ignore_eos``.
        stop_token_ids: the caller's own.
        ignore_eos: the caller's wish, already applied to ``eos_token_ids``; for engines with a switch of their own.
        bad_word_ids: token sequences that must not appear: the last token of one is banned where the others precede.
        logprobs: alternatives a token, or None for no log-probabilities at all.
        prompt_logprobs: the same for the prompt.
        structured: a constraint on the text.
        lora: name of a loaded adapter.
        priority: lower runs earlier.
        cache_salt: prefixes are shared only between requests with the same salt.
    """

    id: str
    prompt_token_ids: list[int]
    prompt_text: str | None = None
    sampling: SamplingParams
    max_tokens: int
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: Structured | None = None
    lora: str | None = None
    priority: int = 0
    cache_salt: str | None = None

    @property
    def terminators(self) -> frozenset[int]:
        """Every token that ends the sequence."""
        return self.eos_token_ids | self.stop_token_ids


class TokenFinish(Struct, frozen=True, gc=False):
    """The end of a sequence.

    Attributes:
        reason: ``stop`` if the last token is one of the request's terminators, ``length`` at ``max_tokens``,
            ``abort`` after an abort.
        cached_tokens: prompt tokens found in the prefix cache; None where the engine does not say.
        prompt_logprobs: one entry a prompt token, the first None; only if asked for.
    """

    reason: FinishReason
    cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class TokenDelta(Struct, gc=False):
    """New tokens of one sequence. The last delta, and only it, has ``finish``.

    Attributes:
        token_ids: new tokens, in order, the terminating one included. May be empty only in the last delta.
        logprobs: one entry a token, if asked for.
        finish: the end, or None.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: TokenFinish | None = None
