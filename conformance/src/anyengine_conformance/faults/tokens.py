"""Engines whose text and tokens do not belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, fault, is_ids
from anyengine_conformance.faults.stopping import ChangedCompletion, ChangedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine import Completion
    from anyengine.backend import BackendInfo, TokenRequest


@fault("tokens.prompt-ids-are-the-tokenizers", "a text gets a token in front")
class TokenInFront(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(completion, prompt_token_ids=[0, *completion.prompt_token_ids])


@fault("tokens.tokenize-is-the-tokenizers", "a text is stripped before it is tokenised")
class Stripped(BrokenEngine):
    async def tokenize(self, prompt: Any, **options: Any) -> list[int]:
        return await self.inner.tokenize(prompt.strip() or prompt if isinstance(prompt, str) else prompt, **options)


@fault("tokens.detokenize-is-the-tokenizers", "a space at the beginning is lost")
class LeadingSpaceLost(BrokenEngine):
    async def detokenize(self, token_ids: Sequence[int], **options: Any) -> str:
        return (await self.inner.detokenize(token_ids, **options)).removeprefix(" ")


@fault("tokens.text-is-the-decoding", "the text is stripped")
class TextStripped(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(completion, text=completion.text.strip()[:-1]) if len(options) == 2 else completion  # noqa: PLR2004


@fault("tokens.special-tokens-on-request", "special tokens are never in the text")
class SpecialNever(BrokenEngine):
    ignored = ("skip_special_tokens",)


@fault("tokens.usage-counts-them", "the end-of-sequence token is not counted")
class EosNotCounted(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(
            completion, usage=replace(completion.usage, completion_tokens=completion.usage.completion_tokens - 1)
        )


@fault("tokens.cached-tokens-are-of-the-prompt", "cached tokens are counted in whole blocks, beyond the prompt")
class CachedBeyond(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        return replace(completion, usage=replace(completion.usage, cached_tokens=completion.usage.prompt_tokens + 1))


@fault("tokens.ids-are-taken-as-they-are", "a beginning-of-sequence token is put before token ids")
class BosBeforeIds(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return [0, *prompt] if is_ids(prompt) else prompt, options


@fault("tokens.count-tokens-agrees", "count_tokens counts words")
class WordsCounted(BrokenEngine):
    async def count_tokens(self, prompt: Any, **_: Any) -> int:
        return len(str(prompt).split())


@fault("tokens.within-the-vocabulary", "the engine says that its vocabulary is smaller than it is")
class SmallVocabulary(BrokenEngine):
    @property
    def info(self) -> BackendInfo:
        return replace(self.inner.info, vocab_size=100)


@fault("tokens.prompt-decides", "every prompt is cut to the same")
class SamePrompt(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        return (
            replace(request, prompt_token_ids=[1] * len(request.prompt_token_ids))
            if request.max_tokens == 8  # noqa: PLR2004 the check's own number: a narrow fault
            else request
        )
