"""Engines that end in the wrong place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, fault, sampling_of, with_default

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from anyengine import Chunk, Completion
    from anyengine.backend import BackendInfo, TokenDelta, TokenRequest


class ChangedCompletion(BrokenEngine):
    """Changes completions of a single prompt."""

    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        """What becomes of one."""
        return completion

    def completion(self, completion: Completion, options: Mapping[str, Any]) -> Any:
        return completion if isinstance(completion, list) else self.change(completion, options)


@fault("stopping.length-is-exact", "one token too few")
class OneShort(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("max_tokens") == 33:  # noqa: PLR2004 the check's own number: a narrow fault
            return prompt, {**options, "max_tokens": 32}
        return prompt, options


class OtherLength(BrokenBackend):
    """Ends with `length`, but after another number of tokens; the SDK stops such a backend wherever it is used."""

    more: ClassVar[int]

    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        changed = replace(request, max_tokens=max(1, request.max_tokens + self.more))
        async for delta in self.inner.stream(changed):
            yield delta


@fault("stopping.length-is-exact", "the backend ends one token early")
class BackendOneShort(OtherLength):
    more = -1


@fault("stopping.length-is-exact", "the backend gives one token too many")
class BackendOneMore(OtherLength):
    more = 1


@fault("stopping.never-beyond-max-tokens", "the engine runs one token ahead, and it is not discarded")
class OneAhead(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if len(completion.token_ids) != options.get("max_tokens") or options.get("ignore_eos"):
            return completion
        return replace(completion, token_ids=[*completion.token_ids, 1])


@fault("stopping.string-ends-the-text", "the stop string stays in the text")
class StopStays(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "include_stop": True} if options.get("stop") else options


@fault("stopping.tokens-end-with-the-stop", "a token beyond the stop string is kept")
class TokenBeyondStop(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if not isinstance(completion.stop_reason, str):
            return completion
        ids = [*completion.token_ids, completion.token_ids[-1]]
        usage = replace(completion.usage, completion_tokens=len(ids))
        return replace(completion, token_ids=ids, usage=usage)


@fault("stopping.include-stop-keeps-it", "include_stop is ignored")
class IncludeIgnored(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {name: value for name, value in options.items() if name != "include_stop"}


@fault("stopping.first-to-end-wins", "stop_reason is the first of the list, not the one that was found")
class FirstOfTheList(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if isinstance(completion.stop_reason, str):
            return replace(completion, stop_reason=next(iter(options["stop"])))
        return completion


@fault("stopping.across-tokens", "only stop strings of one character are looked for")
class SingleTokensOnly(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        stop = options.get("stop")
        return prompt, {**options, "stop": [text for text in stop if len(text) == 1]} if stop else options


@fault("stopping.stream-holds-back-the-stop", "the stream shows the stop string")
class StreamShowsStop(BrokenEngine):
    async def chunks(self, chunks: AsyncIterator[Chunk], options: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        async for chunk in chunks:
            reason = chunk.finish.stop_reason if chunk.finish else None
            yield replace(chunk, text=chunk.text + reason) if isinstance(reason, str) else chunk


class ChangedRequest(BrokenBackend):
    """Changes the request before the engine sees it."""

    def change(self, request: TokenRequest) -> TokenRequest:
        """What becomes of it."""
        return request

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        return self.inner.stream(self.change(request))


@fault("stopping.stop-token-ends-it", "the backend leaves the terminating token out")
class TerminatorLeftOut(BrokenBackend):
    async def stream(self, request: TokenRequest) -> AsyncGenerator[TokenDelta]:
        async for delta in self.inner.stream(request):
            stopped = delta.finish is not None and delta.finish.reason == "stop"
            yield replace(delta, token_ids=delta.token_ids[:-1]) if stopped else delta


@fault("stopping.stop-token-ends-it", "stop tokens are ignored")
class StopTokensIgnored(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("min_tokens") or options.get("sampling") is None:
            return prompt, options
        return prompt, {name: value for name, value in options.items() if name != "stop_token_ids"}


@fault("stopping.stop-token-ends-it", "the backend never hears of the caller's stop tokens")
class StopTokensNotHanded(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, stop_token_ids=frozenset())


@fault("stopping.eos-ends-it", "only the first end-of-sequence token is known")
class OneEosOnly(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, eos_token_ids=frozenset(sorted(request.eos_token_ids)[:1]))


@fault("stopping.ignore-eos-goes-on", "ignore_eos switches the caller's stop tokens off as well")
class IgnoreEosIgnoresStops(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if options.get("ignore_eos") and sampling_of(options).allowed_token_ids is not None:
            return prompt, {name: value for name, value in options.items() if name != "stop_token_ids"}
        return prompt, options


@fault("stopping.ignore-eos-goes-on", "ignore_eos has no effect, and no token can be forced", base="reference")
class IgnoreEosIgnored(ChangedRequest):
    ends: frozenset[int] = frozenset()

    @property
    def info(self) -> BackendInfo:
        told = self.inner.info
        sampling = told.capabilities.sampling - {"allowed_token_ids", "logit_bias"}
        return replace(told, capabilities=replace(told.capabilities, sampling=sampling))

    def change(self, request: TokenRequest) -> TokenRequest:
        self.ends |= request.eos_token_ids  # of the requests before: none come with ignore_eos
        return replace(request, eos_token_ids=self.ends)


@fault("stopping.min-tokens-holds-strings", "min_tokens is not held against stop strings")
class MinIgnoredByStrings(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, {**options, "min_tokens": 0} if options.get("stop") else options


@fault("stopping.min-tokens-holds-tokens", "min_tokens counts the prompt")
class MinCountsThePrompt(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return replace(request, min_tokens=max(0, request.min_tokens - len(request.prompt_token_ids)))


@fault("stopping.default-fills-the-context", "without max_tokens the engine's own default holds")
class OwnDefaultLength(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return prompt, with_default(prompt, options, max_tokens=4)


@fault("stopping.context-is-as-asked", "max_model_len is ignored")
class ContextIgnored(BrokenBackend):
    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, max_model_len=1024)
