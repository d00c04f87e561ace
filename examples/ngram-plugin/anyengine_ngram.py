"""An engine that continues a text by what followed its last tokens in ``corpus.txt``."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

from anyengine import Capabilities, EngineStats, InvalidRequest, ModelNotFound
from anyengine.backend import Backend, BackendInfo, EngineDescription, EnginePlugin, TokenDelta, TokenFinish
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from anyengine import EngineConfig, SamplingParams
    from anyengine.backend import TokenRequest
    from anyengine.hub import ModelFiles

CONTEXT = 8  # tokens that the next one depends on, at most


class NGramModel:
    """How often each token followed each sequence of up to ``CONTEXT`` tokens."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for position, token in enumerate(text):
                for length in range(min(CONTEXT, position) + 1):
                    self.counts[tuple(text[position - length : position])][token] += 1

    def weights(self, tokens: list[int], banned: Collection[int]) -> dict[int, int]:
        """What followed the longest ending of ``tokens`` that the corpus has, without what is banned."""
        for length in range(min(CONTEXT, len(tokens)), -1, -1):
            counts = self.counts.get(tuple(tokens[len(tokens) - length :]), Counter[int]())
            if allowed := {token: count for token, count in counts.items() if token not in banned}:
                return allowed
        raise InvalidRequest("min_tokens: the corpus has no token but those that end the text", field="min_tokens")


def draw(weights: dict[int, int], sampling: SamplingParams, random: Random) -> int:
    """One token, by the sampling parameters in the order that docs/semantics.md gives them."""
    ranked = sorted(weights, key=lambda token: (-weights[token], token))
    if sampling.greedy:
        return ranked[0]
    # Logits divided by the temperature are probabilities raised to its inverse.
    powers = [(weights[token] / weights[ranked[0]]) ** (1 / sampling.temperature) for token in ranked]
    if sampling.top_k:
        powers = powers[: sampling.top_k]
    if sampling.top_p < 1:
        totals = list(accumulate(powers))
        powers = powers[: bisect_left(totals, sampling.top_p * totals[-1]) + 1]
    return random.choices(ranked[: len(powers)], powers)[0]


class NGramPlugin(EnginePlugin):
    """What the entry point names. Importing it is quick; the work is in ``load``."""

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name="ngram",
            plugin_version="0.1.0",
            in_process=True,
            capabilities=Capabilities(
                config=frozenset({"max_model_len"}),
                sampling=frozenset({"temperature", "top_k", "top_p", "seed"}),
                request=frozenset({"min_tokens", "stop_token_ids", "ignore_eos"}),
                token_prompts=True,
                determinism=frozenset({"run", "batch-invariant"}),
                unseeded="varies",
            ),
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> NGramBackend:
        tokenizer = Tokenizer.from_file(str(model.tokenizer_path / "tokenizer.json"))
        try:
            lines = (model.path / "corpus.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelNotFound(f"{model.path} has no readable corpus.txt: {error}") from error
        texts = [[*tokenizer.encode(line).ids, min(model.eos_token_ids)] for line in lines if line]
        trained = await asyncio.to_thread(NGramModel, texts)  # takes a while; the event loop goes on
        context, vocabulary = config.max_model_len or 4096, tokenizer.get_vocab_size()
        capabilities = self.describe().capabilities
        info = BackendInfo(capabilities=capabilities, max_model_len=context, vocab_size=vocabulary)
        return NGramBackend(info, trained)


class NGramBackend(Backend):
    """The loaded engine."""

    def __init__(self, info: BackendInfo, model: NGramModel) -> None:
        self._info = info
        self._model = model
        self._running: set[str] = set()
        self._prompt_tokens = self._generated_tokens = 0

    @property
    def info(self) -> BackendInfo:
        return self._info

    async def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        self._running.add(request.id)
        self._prompt_tokens += len(request.prompt_token_ids)
        tokens = list(request.prompt_token_ids)
        random = Random(request.sampling.seed)  # noqa: S311 a stream of its own: what else runs cannot change it
        try:
            finish = None
            while finish is None:
                await asyncio.sleep(0)  # the other requests' turn
                new, finish = self._step(request, tokens, random)
                yield TokenDelta(new, finish=finish)
        finally:
            self._running.discard(request.id)

    def _step(self, request: TokenRequest, tokens: list[int], random: Random) -> tuple[list[int], TokenFinish | None]:
        if request.id not in self._running:
            return [], TokenFinish("abort")
        generated = len(tokens) - len(request.prompt_token_ids)
        banned = request.terminators if generated < request.min_tokens else ()
        token = draw(self._model.weights(tokens, banned), request.sampling, random)
        tokens.append(token)
        self._generated_tokens += 1
        reason = "stop" if token in request.terminators else "length" if generated + 1 == request.max_tokens else None
        if reason is not None:
            self._running.remove(request.id)
        return [token], TokenFinish(reason) if reason else None

    async def abort(self, request_id: str) -> None:
        self._running.discard(request_id)

    async def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=0,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    async def close(self) -> None:
        self._running.clear()


plugin = NGramPlugin()
