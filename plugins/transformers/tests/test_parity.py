"""The trained models, against the reference engine and against transformers called directly."""

from __future__ import annotations

import pytest
from anyengine import Engine, SamplingParams

pytestmark = pytest.mark.oracle

#: A choice this close to the best, in nats, is a tie that rounding decides.
NEAR_TIE = 1e-3
TOKENS = 64
OPENINGS = ["Once upon a time", "One day", "There was a", "A little", "The big"]
HEROES = ["cat", "train", "girl named Lily", "dog"]
PROMPTS = [f"{opening} {hero}" for opening in OPENINGS for hero in HEROES]


async def test_greedy_tokens_of_storyteller_are_those_of_the_reference_engine(load):
    options = {"sampling": SamplingParams(temperature=0), "max_tokens": TOKENS}
    async with Engine.load("reference") as reference:
        expected = await reference.generate(PROMPTS, **options)
        async with load(reference.model.path) as engine:
            answers = await engine.generate(PROMPTS, logprobs=1, **options)
        scores = [await reference.score(each.prompt_token_ids + each.token_ids, logprobs=1) for each in answers]
    gaps = [
        max(entry.top.values()) - entry.logprob
        for answer, score in zip(answers, scores, strict=True)
        for entry in score.entries[len(answer.prompt_token_ids) :]
    ]
    assert max(gaps) <= NEAR_TIE
    assert [each.prompt_token_ids for each in answers] == [each.prompt_token_ids for each in expected]
    same = [
        a.token_ids == b.token_ids and a.finish_reason == b.finish_reason
        for a, b in zip(answers, expected, strict=True)
    ]
    assert sum(same) >= len(PROMPTS) - 1  # a near tie may part two texts
    errors = [
        abs(entry.logprob - own.logprob)
        for answer, score in zip(answers, scores, strict=True)
        for entry, own in zip(score.entries[len(answer.prompt_token_ids) :], answer.logprobs, strict=True)
    ]
    assert max(errors) <= 1e-4


async def test_scores_and_prompt_logprobs_of_storyteller_are_those_of_the_reference_engine(load):
    async with Engine.load("reference") as reference, load(reference.model.path) as engine:
        for prompt in PROMPTS:
            expected = await reference.score(prompt, logprobs=3)
            score = await engine.score(prompt, logprobs=3)
            echo = await engine.generate(prompt, max_tokens=1, prompt_logprobs=3)
            assert score.token_ids == expected.token_ids
            assert echo.prompt_logprobs == score.entries
            assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
            for entry, other in zip(score.entries[1:], expected.entries[1:], strict=True):
                assert entry.top == pytest.approx(other.top, abs=1e-4)


@pytest.mark.timeout(300)
async def test_scores_of_smollm2_are_those_of_transformers(smollm2, load, direct):
    text = "The capital of France is Paris. Water boils at 100 degrees, and the mitochondria is the powerhouse of"
    import torch

    async with load(smollm2) as engine:
        score = await engine.score(text)
        greedy = await engine.generate(text, sampling=SamplingParams(temperature=0), max_tokens=12, logprobs=0)
    logits = direct(smollm2)
    expected = logits(score.token_ids).log_softmax(-1)
    assert score.logprobs == pytest.approx(
        [expected[i, token].item() for i, token in enumerate(score.token_ids[1:])], abs=1e-4
    )
    rows = logits(score.token_ids + greedy.token_ids)[len(score.token_ids) - 1 : -1]
    gaps = rows.max(-1).values - rows.gather(1, torch.tensor(greedy.token_ids)[:, None])[:, 0]
    assert gaps.max().item() <= NEAR_TIE
