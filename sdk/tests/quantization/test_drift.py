"""The three measures, on distributions whose distance can be worked out by hand."""

import math

import pytest
from anyengine import Engine, TokenLogprobs
from anyengine.quantization import compare, held_out_texts, scores_of


def entry(token, **chances):
    top = {int(name[1:]): math.log(chance) for name, chance in chances.items()}
    return TokenLogprobs(token, top[token], top)


EXACT = [[entry(1, t1=0.5, t2=0.25), entry(2, t1=0.25, t2=0.5)]]


def test_the_same_scores_do_not_drift():
    drift = compare(EXACT, EXACT)
    assert (drift.perplexity_ratio, drift.mean_kl, drift.top1_agreement, drift.tokens) == (1.0, 0.0, 1.0, 2)


def test_each_measure_is_what_it_says():
    found = [[entry(1, t1=0.25, t2=0.5), entry(2, t1=0.25, t2=0.5)]]
    drift = compare(EXACT, found)
    assert drift.perplexity_ratio == pytest.approx(math.exp(math.log(0.5 / 0.25) / 2))
    assert drift.mean_kl == pytest.approx((0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2)
    assert drift.top1_agreement == 0.5


def test_a_token_that_only_one_names_counts_with_the_rest():
    drift = compare([[entry(1, t1=0.5, t2=0.25)]], [[entry(1, t1=0.25, t3=0.5)]])
    assert drift.mean_kl == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))


@pytest.mark.parametrize("found", [[[entry(2, t1=0.5, t2=0.25), EXACT[0][1]]], [EXACT[0][:1]], [], [[], []]])
def test_scores_of_other_tokens_are_not_compared(found):
    with pytest.raises(ValueError, match=r".+"):
        compare(EXACT, found)


async def test_every_held_out_text_is_scored():
    async with Engine.load("reference", model="storyteller-draft") as engine:
        scores = await scores_of(engine, held_out_texts()[:2], top=5, tokens=20)
    assert [len(entries) for entries in scores] == [19, 19]
    assert {len(one.top) for entries in scores for one in entries} <= {5, 6}
