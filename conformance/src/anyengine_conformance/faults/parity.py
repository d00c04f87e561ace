"""Engines whose greedy tokens are not the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, as_list, fault, sampling_of
from anyengine_conformance.faults.stopping import ChangedCompletion, ChangedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine import Completion
    from anyengine.backend import TokenRequest

#: In the simulated engine's vocabulary printable ASCII comes first, from "!" on.
_PRINTABLE, _FIRST = 94, ord("!")
_OTHERS = {220: " ", 198: "\n"}
_E = ord("e") - _FIRST
_IM_START = 257


def _biased(request: TokenRequest, bias: float = 6.0) -> TokenRequest:
    """With a logit that is wrong."""
    return replace(request, sampling=request.sampling.model_copy(update={"logit_bias": {_E: bias}}))


class WrongWhere(ChangedRequest):
    """Greedy tokens are wrong behind some prompts."""

    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        """Whether it is one of those."""
        return True

    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        return _biased(request) if request.sampling.greedy and self.wrong(ids, request) else request


def _text(ids: list[int]) -> str:
    """What the simulated engine's ids spell; specials and what is not ASCII become one strange character."""
    return "".join(chr(token + _FIRST) if token < _PRINTABLE else _OTHERS.get(token, "\ufffd") for token in ids)


@fault("parity.plain-text", "one row of the output projection is wrong")
class WrongRow(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        return _text(ids).startswith("Once upon") and not request.stop_token_ids


@fault("parity.code", "punctuation at the end of a prompt is dropped")
class NoPunctuation(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        while len(ids) > 1 and _text(ids[-1:]) in ":(,":
            ids.pop()
        return replace(request, prompt_token_ids=ids)


@fault("parity.multilingual", "bytes beyond ASCII are dropped from the prompt")
class AsciiOnly(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = [token for token in request.prompt_token_ids if _text([token]) != "\ufffd"]
        return replace(request, prompt_token_ids=ids or list(request.prompt_token_ids))


@fault("parity.chat", "special tokens in a prompt have another token's embedding")
class StrangeSpecials(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        return ids[0] == _IM_START and len(ids) > 45  # noqa: PLR2004 more than a greeting


@fault("parity.long-prompt", "of a long prompt only the beginning is computed")
class Truncated(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        if len(ids) <= 600 or not request.sampling.greedy:  # noqa: PLR2004 a limit like any other
            return request
        return replace(request, prompt_token_ids=ids[:600])


@fault("parity.token-ids", "behind ids that no tokenizer gives in that order, the embedding is wrong")
class StrangeIds(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        # No text of the checks has so many bytes beyond ASCII in so few tokens.
        return _text(ids).count("\ufffd") > 10 and len(ids) < 45  # noqa: PLR2004


@fault("parity.single-token-prompt", "the first position of a prompt of one token is wrong")
class WrongFirstPosition(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        return len(ids) == 1


@fault("parity.prompt-ids", "the engine tokenizes by itself, and adds a token")
class OwnTokenizer(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if _text(completion.prompt_token_ids).startswith("def greet"):
            return replace(completion, prompt_token_ids=[0, *completion.prompt_token_ids])
        return completion


@fault("parity.ends-where-the-model-ends", "end-of-sequence tokens are held back for 200 tokens", base="reference")
class LateEnd(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        longest = request.max_tokens or 0
        long = longest > 100 and request.sampling.greedy  # noqa: PLR2004 the check asks for more
        return replace(request, min_tokens=min(longest, 200)) if long else request


@fault("parity.mean-error", "log-probabilities are of the logits in 8 bits")
class CoarseLogprobs(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if completion.logprobs is None or options.get("logprobs") != 0 or options.get("max_tokens") != 24:  # noqa: PLR2004
            return completion
        coarse = [replace(entry, logprob=round(entry.logprob * 4) / 4) for entry in completion.logprobs]
        return replace(completion, logprobs=coarse)


@fault("parity.stop-string", "with stop strings the engine samples")
class StopSamples(BrokenEngine):
    def request(self, prompt: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if [len(text) for text in as_list(options.get("stop"))] == [3] and sampling_of(options).greedy:
            hot = options["sampling"].model_copy(update={"temperature": 1.9, "seed": 5})
            return prompt, {**options, "sampling": hot}
        return prompt, options


@fault("parity.n-sequences", "all but the first of n sequences are drawn at random")
class OnlyTheFirst(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if len(completion.alternatives) != 4:  # noqa: PLR2004 the check's own
            return completion
        wrong = [replace(one, token_ids=[*one.token_ids[:-1], 7]) for one in completion.alternatives]
        return replace(completion, alternatives=wrong)


@fault("parity.cached-prefix", "the prefix cache is looked up without the first token")
class CollidingPrefix(ChangedRequest):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: dict[tuple[int, ...], TokenRequest] = {}

    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        if len(ids) < 400:  # noqa: PLR2004 only what is long is kept
            return request
        if tuple(ids) in self.seen:
            return _biased(request)
        self.seen[tuple(ids)] = request
        return request


@fault("parity.chunked-prompt", "of a chunked prompt, the last piece is computed without the others' end")
class PieceAlone(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        size, ids = self.config.scheduling.max_num_batched_tokens, list(request.prompt_token_ids)
        if size != 64 or len(ids) < size:  # noqa: PLR2004 the variant's own
            return request
        return _biased(request)
