"""Engines whose greedy tokens are not the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from anyengine_conformance.broken import BrokenEngine, fault, is_ids
from anyengine_conformance.faults.stopping import ChangedCompletion, ChangedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine import Completion
    from anyengine.backend import TokenRequest

#: Byte of the simulated engine's tokenizer, in whose vocabulary bytes come first.
_E = ord("e")


def _biased(request: TokenRequest, bias: float = 2.0) -> TokenRequest:
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
    return bytes(token for token in ids if token < 256).decode("utf-8", "replace")  # noqa: PLR2004 its bytes


@fault("parity.plain-text", "one row of the output projection is wrong")
class WrongRow(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        return _text(ids).startswith("Once upon") and not request.stop_token_ids


@fault("parity.code", "punctuation at the end of a prompt is dropped")
class NoPunctuation(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        while len(ids) > 1 and chr(ids[-1]) in ":(,":
            ids.pop()
        return replace(request, prompt_token_ids=ids)


@fault("parity.multilingual", "bytes beyond ASCII are dropped from the prompt")
class AsciiOnly(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = [token for token in request.prompt_token_ids if not 128 <= token < 256]  # noqa: PLR2004 its bytes
        return replace(request, prompt_token_ids=ids or list(request.prompt_token_ids))


@fault("parity.chat", "a chat's last tokens, which open the assistant's turn, are cut off")
class TurnNotOpened(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        return replace(request, prompt_token_ids=ids[:-3]) if _text(ids).rstrip().endswith("assistant") else request


@fault("parity.long-prompt", "of a long prompt only the beginning is computed")
class Truncated(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        if len(ids) <= 600 or not request.sampling.greedy:  # noqa: PLR2004 a limit like any other
            return request
        return replace(request, prompt_token_ids=ids[:600])


@fault("parity.token-ids", "prompts of token ids lose what no tokenizer would give")
class Recoded(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        ids = list(request.prompt_token_ids)
        again = list(_text(ids).encode())
        return replace(request, prompt_token_ids=again[:-1] or ids) if "\ufffd" in _text(ids)[:-1] else request


@fault("parity.single-token-prompt", "the first position of a prompt of one token is wrong")
class WrongFirstPosition(WrongWhere):
    def wrong(self, ids: list[int], request: TokenRequest) -> bool:
        return len(ids) == 1


@fault("parity.prompt-ids", "the engine tokenizes by itself, and adds a token")
class OwnTokenizer(ChangedCompletion):
    def change(self, completion: Completion, options: Mapping[str, Any]) -> Completion:
        if not is_ids(options.get("prompt")) and _text(completion.prompt_token_ids).startswith("def greet"):
            return replace(completion, prompt_token_ids=[0, *completion.prompt_token_ids])
        return completion


@fault("parity.ends-where-the-model-ends", "end-of-sequence tokens are banned for the first 200 tokens")
class LateEnd(ChangedRequest):
    def change(self, request: TokenRequest) -> TokenRequest:
        long = (request.max_tokens or 0) > 100 and request.sampling.greedy  # noqa: PLR2004 the check's own
        return replace(request, min_tokens=max(request.min_tokens, 200)) if long else request


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
        if options.get("stop") and options["sampling"].greedy and len(next(iter(options["stop"]))) == 3:  # noqa: PLR2004
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
