"""Engines whose log-probabilities are missing, misplaced, or not the model's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, fault, sampling_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from anyengine import Chunk, Completion, Score
    from anyengine.backend import TokenDelta, TokenRequest
    from anyengine.outputs import TokenLogprobs


class ChangedEntries(BrokenEngine):
    """Changes the entries of completions."""

    def applies(self, options: Mapping[str, Any]) -> bool:
        """To which calls."""
        return True

    def entries(self, entries: list[TokenLogprobs], completion: Completion) -> list[TokenLogprobs]:
        """What becomes of all of them."""
        return [self.entry(entry) for entry in entries]

    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        """What becomes of one."""
        return entry

    def _one(self, completion: Completion) -> Completion:
        if completion.logprobs is None:
            return completion
        return replace(completion, logprobs=self.entries(completion.logprobs, completion))

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or not self.applies(options):
            return completion
        return replace(self._one(completion), alternatives=[self._one(other) for other in completion.alternatives])


def _shifted(entry: TokenLogprobs, nats: float) -> TokenLogprobs:
    top = {token: value + nats for token, value in entry.top.items()}
    return replace(entry, logprob=entry.logprob + nats, top=top)


@fault("logprobs.one-entry-a-token", "the last entry is missing")
class LastMissing(ChangedEntries):
    def entries(self, entries: list[TokenLogprobs], completion: Completion) -> list[TokenLogprobs]:
        return entries[:-1]


@fault("logprobs.end-token-has-its-entry", "the end-of-sequence token has no entry")
class EndWithoutEntry(ChangedEntries):
    def entries(self, entries: list[TokenLogprobs], completion: Completion) -> list[TokenLogprobs]:
        return entries[:-1] if isinstance(completion.stop_reason, int) else entries


@fault("logprobs.chosen-is-present", "the chosen token is left out where it is not among the most likely")
class ChosenMissing(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return replace(entry, top=dict(list(entry.top.items())[:5]))


@fault("logprobs.at-most-zero", "the logarithm is not taken")
class Probabilities(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        top = {token: math.exp(value) for token, value in entry.top.items()}
        return replace(entry, logprob=math.exp(entry.logprob), top=top)


@fault("logprobs.top-is-sorted", "the chosen token comes first")
class ChosenFirst(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return replace(entry, top={entry.token_id: entry.logprob, **entry.top})


@fault("logprobs.so-many-alternatives", "one alternative fewer than asked for")
class OneFewer(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "logprobs": 4} if options.get("logprobs") == 5 else options  # noqa: PLR2004


@fault("logprobs.mass-at-most-one", "normalised over the alternatives that are given, and once more")
class TooMuchMass(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        highest = max(entry.top.values())
        return _shifted(entry, -highest) if highest < -0.01 else entry  # noqa: PLR2004 nats


@fault("logprobs.most-alternatives-are-given", "no more than ten alternatives, whatever is declared")
class NoMoreThanTen(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return replace(entry, top=dict(list(entry.top.items())[:10]))


@fault("logprobs.are-the-models", "in bits, not in nats")
class Bits(ChangedEntries):
    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        top = {token: value / math.log(2) for token, value in entry.top.items()}
        return replace(entry, logprob=entry.logprob / math.log(2), top=top)


@fault("logprobs.alternatives-are-the-models", "the alternatives belong to the token before")
class AlternativesOfTheOneBefore(ChangedEntries):
    def entries(self, entries: list[TokenLogprobs], completion: Completion) -> list[TokenLogprobs]:
        before = entries[:1] + entries[:-1]
        return [
            replace(
                entry, top=dict(sorted({**other.top, entry.token_id: entry.logprob}.items(), key=lambda one: -one[1]))
            )
            for entry, other in zip(entries, before, strict=True)
        ]


class _OfShaped(ChangedEntries):
    """Less likely by half a nat, under some sampling."""

    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return _shifted(entry, -0.5)


@fault("logprobs.raw-at-any-temperature", "after temperature, not before")
class AfterTemperature(_OfShaped):
    def applies(self, options: Mapping[str, Any]) -> bool:
        return sampling_of(options).temperature not in (0, 1)


@fault("logprobs.raw-under-bias", "after the bias, not before")
class AfterBias(ChangedEntries):
    def applies(self, options: Mapping[str, Any]) -> bool:
        return bool(sampling_of(options).logit_bias)

    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return _shifted(entry, -entry.logprob)


@fault("logprobs.greedy-is-the-top", "a greedy entry is of the runner-up")
class RunnerUp(ChangedEntries):
    def applies(self, options: Mapping[str, Any]) -> bool:
        return sampling_of(options).greedy and options.get("logprobs") == 2  # noqa: PLR2004 the check's number

    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return replace(entry, logprob=min(entry.top.values()))


@fault("logprobs.stream-has-them", "only the first chunk of a stream has entries")
class FirstChunkOnly(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        first = True
        async for chunk in chunks:
            yield chunk if first or chunk.logprobs is None else replace(chunk, logprobs=[])
            first = False


@fault("logprobs.with-choices", "every choice has the entries of the first")
class EntriesOfTheFirst(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or not completion.alternatives or "logprobs" not in options:
            return completion
        others = [replace(other, logprobs=completion.logprobs) for other in completion.alternatives]
        return replace(completion, alternatives=others)


@fault("logprobs.end-with-the-stop", "entries of tokens beyond the stop string are kept")
class EntriesBeyondTheStop(ChangedEntries):
    def applies(self, options: Mapping[str, Any]) -> bool:
        return "stop" in options

    def entries(self, entries: list[TokenLogprobs], completion: Completion) -> list[TokenLogprobs]:
        return [*entries, entries[-1]]


@fault("logprobs.with-structured", "under a constraint they are those of what the constraint leaves")
class AfterTheMask(ChangedEntries):
    def applies(self, options: Mapping[str, Any]) -> bool:
        return options.get("structured") is not None

    def entry(self, entry: TokenLogprobs) -> TokenLogprobs:
        return _shifted(entry, -entry.logprob)


class ChangedPrompt(BrokenEngine):
    """Changes the entries of prompts."""

    def entries(self, entries: list[TokenLogprobs | None]) -> list[TokenLogprobs | None]:
        """What becomes of them."""
        return entries

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or completion.prompt_logprobs is None:
            return completion
        return replace(completion, prompt_logprobs=self.entries(completion.prompt_logprobs))


@fault("logprobs.prompt-is-aligned", "the entries are one place early")
class OneEarly(ChangedPrompt):
    def entries(self, entries: list[TokenLogprobs | None]) -> list[TokenLogprobs | None]:
        return [*entries[1:], None]


@fault("logprobs.prompt-is-the-models", "the log-probabilities of the prompt are half a nat too low")
class PromptTooLow(ChangedPrompt):
    def entries(self, entries: list[TokenLogprobs | None]) -> list[TokenLogprobs | None]:
        return [None if entry is None else _shifted(entry, -0.5) for entry in entries]


@fault("logprobs.prompt-has-alternatives", "the prompt has no alternatives")
class PromptAlone(ChangedPrompt):
    def entries(self, entries: list[TokenLogprobs | None]) -> list[TokenLogprobs | None]:
        return [None if entry is None else replace(entry, top={entry.token_id: entry.logprob}) for entry in entries]


@fault("logprobs.prompt-has-alternatives", "more alternatives of a prompt than are declared are cut")
class PromptAlternativesCut(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        many = options.get("prompt_logprobs") == 21  # noqa: PLR2004 one more than the simulated engine has
        return prompt, {**options, "prompt_logprobs": 20} if many else options


@fault("logprobs.prompt-in-streams", "the prompt's entries are lost with the second output")
class LostWithTheSecond(BrokenBackend):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        outputs = 0
        async for delta in self.inner.stream(request):
            outputs += 1
            if outputs > 1 and delta.finish is not None:
                yield replace(delta, finish=replace(delta.finish, prompt_logprobs=None))
            else:
                yield delta


@fault("logprobs.prompt-cached-or-not", "what was found in the prefix cache has no entries")
class CachedHaveNone(BrokenEngine):
    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        if isinstance(completion, list) or completion.prompt_logprobs is None:
            return completion
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 1:
            return completion
        return replace(completion, prompt_logprobs=[None] * 16 + completion.prompt_logprobs[16:])


@fault("logprobs.score-is-aligned", "the first entry is left out")
class ScoreWithoutFirst(BrokenBackend):
    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        score = await self.inner.score(token_ids, logprobs)
        return replace(score, entries=score.entries[1:])


@fault("logprobs.score-is-the-models", "scores are half a nat too low")
class ScoreTooLow(BrokenBackend):
    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        score = await self.inner.score(token_ids, logprobs)
        return replace(score, entries=[None if entry is None else _shifted(entry, -0.5) for entry in score.entries])


@fault("logprobs.score-agrees-with-generate", "scores are in bits, log-probabilities in nats")
class ScoreInBits(BrokenBackend):
    async def score(self, token_ids: Sequence[int], logprobs: int) -> Score:
        score = await self.inner.score(token_ids, logprobs)
        entries = [
            None if entry is None else replace(entry, logprob=entry.logprob / math.log(2)) for entry in score.entries
        ]
        return replace(score, entries=entries)
