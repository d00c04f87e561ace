"""Speculation changes how fast tokens come, never which: greedy bitwise, sampled in distribution."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from anyengine.request import Structured

VOCAB = 8
REQUESTS = 3_000
#: One false alarm in a million a case; seeds are fixed, so a case that passes once passes always.
SIGNIFICANCE = 1e-6
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]


def models(tiny_model: Any) -> tuple[Any, Any]:
    small = {"vocab_size": VOCAB, "max_position_embeddings": 64, "hidden_size": 12, "intermediate_size": 16}
    return tiny_model(**small, seed=2), tiny_model(**small, num_hidden_layers=1, seed=2)


def speculating(driving: Any, tiny_model: Any, method: str, tokens: int = 3, **options: Any) -> Any:
    from anyengine_reference.model import KVCache
    from anyengine_reference.speculation import DraftModel, NGram

    model, draft = models(tiny_model)
    num_blocks = options.setdefault("num_blocks", 1024)
    if method == "itself":  # the best of all draft models
        draft = model
    proposer = NGram(1, 3) if method == "ngram" else DraftModel(draft, KVCache(draft.config, num_blocks, 4))
    return driving.Driver(model, proposer=proposer, num_speculative_tokens=tokens, **options)


def exact(model: Any, driving: Any, length: int, **sampling: Any) -> dict[tuple[int, ...], float]:
    """Each sequence of tokens to its probability under the model, without speculation."""
    from anyengine_reference.model import KVCache, Segment
    from anyengine_reference.sampling import Sampler

    sequences: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, probability in sequences.items():
            whole = [*PROMPT, *tokens]
            hidden = model.forward([Segment(whole, 0, range(8))], KVCache(model.config, 8, 4))[0]
            sampler = Sampler(driving.request(PROMPT, **sampling), VOCAB)
            for token in tokens:
                sampler.accept(token)
            shaped = sampler.shape(model.logits(hidden[-1:])[0], whole, len(tokens), None)
            distribution = sampler.distribution(shaped)
            for token, share in zip(distribution.token_ids, distribution.probabilities, strict=True):
                if share > 0:
                    longer[*tokens, int(token)] = probability * float(share)
        sequences = longer
    return sequences


@pytest.mark.parametrize(
    ("method", "sampling"),
    [
        ("ngram", {}),
        ("draft", {}),
        ("draft", {"temperature": 0.6, "top_p": 0.9}),
        ("draft", {"repetition_penalty": 1.5, "logit_bias": {3: 1.0}, "top_k": 4}),
        ("itself", {"presence_penalty": 1.0}),
        ("ngram", {"top_k": 3, "frequency_penalty": 0.5}),
    ],
    ids=str,
)
def test_sampled_sequences_are_distributed_as_the_model_alone(
    method: str, sampling: dict[str, Any], driving: Any, tiny_model: Any, statistics: Any
) -> None:
    """The first token comes of the prompt, the second and the third of a verification."""
    driver = speculating(driving, tiny_model, method, tokens=2)
    for number in range(REQUESTS):
        driver.add(driving.request(PROMPT, number, max_tokens=4, **sampling))
    driver.run()
    outcomes = [tuple(result.token_ids[:3]) for result in driver.results.values()]
    probabilities = exact(models(tiny_model)[0], driving, 3, **sampling)
    assert statistics.p_value(outcomes, probabilities) > SIGNIFICANCE
    stats = driver.core.stats().speculative
    assert 0 < stats.accepted_tokens < stats.drafted_tokens or method == "itself"


REQUEST_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "bias and bans": {"logit_bias": {1: 1.5}, "bad_word_ids": ((2, 3), (5,)), "allowed_token_ids": [0, 1, 2, 3, 4, 5]},
    "min_tokens": {"min_tokens": 7, "stop_token_ids": frozenset(range(0, VOCAB, 2))},
    "stop tokens": {"stop_token_ids": frozenset({3, 6})},
    "end of sequence": {"eos_token_ids": frozenset({5})},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
    "end in a run": {"max_tokens": 6},
    "prompt log-probabilities": {"prompt_logprobs": 2},
}


@pytest.mark.parametrize("method", ["ngram", "draft", "itself"])
@pytest.mark.parametrize("case", REQUEST_CASES)
def test_greedy_output_is_that_without_speculation_bitwise(
    method: str, case: str, driving: Any, tiny_model: Any
) -> None:
    model, _ = models(tiny_model)
    options = {"temperature": 0, "logprobs": 2, "max_tokens": 15, **REQUEST_CASES[case]}
    requests = [driving.request([1, 2, 1, 2, number % VOCAB], number, **options) for number in range(6)]
    batch = speculating(driving, tiny_model, method, num_blocks=14, max_num_seqs=4)
    for wanted in requests:
        batch.add(wanted)
    batch.run()
    for wanted in requests:
        expected = driving.alone(model, wanted)
        single = speculating(driving, tiny_model, method)
        alone = single.add(wanted)
        single.run()
        for got in (alone, batch.results[wanted.id]):
            assert (got.token_ids, got.logprobs) == (expected.token_ids, expected.logprobs)
            assert got.finish.prompt_logprobs == expected.finish.prompt_logprobs
            assert got.reason == expected.reason
    assert batch.pool.used == 0


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_a_draft_model_that_is_the_model_is_always_right(tokens: int, driving: Any, tiny_model: Any) -> None:
    driver = speculating(driving, tiny_model, "itself", tokens=tokens)
    driver.add(driving.request(PROMPT, temperature=0, max_tokens=25))
    driver.add(driving.request(PROMPT, 1, temperature=0.9, top_k=5, max_tokens=25))
    driver.run()
    stats = driver.core.stats().speculative
    assert stats.accepted_tokens == stats.drafted_tokens
    # The first token comes of the prompt; the last step may have no room left for a draft.
    steps = -(-24 // (tokens + 1))
    assert steps * 2 - 2 <= stats.drafts <= steps * 2


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_counters_add_up(method: str, driving: Any, tiny_model: Any) -> None:
    driver = speculating(driving, tiny_model, method, tokens=4)
    for number in range(20):
        driver.add(driving.request(PROMPT, number, max_tokens=20))
    driver.run()
    stats = driver.core.stats()
    drafts = stats.speculative
    assert drafts.accepted_tokens == sum(drafts.accepted_per_position)
    assert len(drafts.accepted_per_position) == 4
    assert sorted(drafts.accepted_per_position, reverse=True) == list(drafts.accepted_per_position)
    assert drafts.accepted_per_position[0] <= drafts.drafts <= drafts.drafted_tokens <= 4 * drafts.drafts
    assert 0 < drafts.accepted_tokens < drafts.drafted_tokens
    assert stats.generated_tokens == 400
    assert stats.inter_token_latency.count == 20 * 19


def test_ngram_proposes_what_followed_the_most_recent_longest_match(driving: Any) -> None:
    from anyengine.backend import DeltaCollector
    from anyengine_reference.sampling import Sampler
    from anyengine_reference.sequence import Sequence
    from anyengine_reference.speculation import NGram

    def propose(tokens: list[int], shortest: int, longest: int, count: int) -> list[int]:
        wanted = driving.request(tokens)
        return NGram(shortest, longest).propose(Sequence(wanted, DeltaCollector(), Sampler(wanted, 99), None), count)[0]

    assert propose([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2, 3, 3) == [9, 2, 3]
    assert propose([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2, 2, 3) == [8, 1, 2]
    assert propose([7, 7, 7], 1, 2, 5) == [7]
    assert propose([1, 2, 3], 1, 2, 5) == []
    assert propose([1], 1, 2, 5) == []
    assert propose([4, 5, 4], 2, 4, 5) == []


def test_structured_greedy_output_is_that_without_speculation(driving: Any, tiny_model: Any, bytes_folder: Any) -> None:
    from anyengine_reference.speculation import NGram
    from anyengine_reference.structured import ConstraintCompiler

    model = tiny_model(vocab_size=259, max_position_embeddings=256)
    compiler = ConstraintCompiler(bytes_folder / "tokenizer.json", 259, frozenset({256}))
    for structured in (
        Structured(regex="(abc|abd|x){4,9}"),
        Structured(json_schema={"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 2, "maxItems": 5}),
        Structured(choice=["aaaa aaaa aaaa", "aaaa bbbb"]),
    ):
        wanted = driving.request(
            b"abcabcabcx", temperature=0, max_tokens=40, logprobs=1, eos_token_ids=frozenset({256})
        )
        expected = driving.alone(model, wanted, compiler.compile(structured))
        driver = driving.Driver(model, proposer=NGram(1, 3), num_speculative_tokens=4)
        got = driver.add(wanted, compiler.compile(structured))
        driver.run()
        assert (got.token_ids, got.logprobs, got.reason) == (expected.token_ids, expected.logprobs, expected.reason)


def test_rejection_leaves_nothing_of_the_draft_in_the_cache(driving: Any, tiny_model: Any) -> None:
    """Blocks that a wrong draft has written are found by a later prompt only as far as their tokens are right."""
    model, _ = models(tiny_model)
    driver = speculating(driving, tiny_model, "draft", tokens=5)
    first = driver.add(driving.request(PROMPT, 3, max_tokens=20, temperature=2.0))
    driver.run()
    assert driver.core.stats().speculative.accepted_tokens < driver.core.stats().speculative.drafted_tokens
    later = driving.request(PROMPT + first.token_ids, 4, max_tokens=5, temperature=0, logprobs=3)
    got = driver.add(later)
    driver.run()
    assert got.finish.cached_tokens > len(PROMPT)
    assert got.logprobs == driving.alone(model, later).logprobs


def test_draft_of_another_distribution_has_no_influence_beyond_speed(driving: Any, tiny_model: Any) -> None:
    """Numbers for the draft, the verification and the redraw of one position are independent."""
    from anyengine_reference.sampling import DRAFT, DRAW, REDRAW, VERIFY, Sampler

    numbers = np.array(
        [
            [
                Sampler(driving.request([0], seed), VOCAB).uniform(9, purpose)
                for purpose in (DRAW, VERIFY, REDRAW, DRAFT)
            ]
            for seed in range(4_000)
        ]
    )
    correlations = np.corrcoef(numbers, rowvar=False)
    pairs = [correlations[i, j] for i, j in itertools.combinations(range(4), 2)]
    assert max(map(abs, pairs)) < 5 / 4_000**0.5
    assert Counter((numbers * 4).astype(int)[:, 0].tolist()).keys() == {0, 1, 2, 3}
