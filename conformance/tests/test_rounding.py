"""Near-ties of other models than the built-in one are measured, and an edge that rounding may move is no clear one."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from anyengine import Score, TokenLogprobs
from anyengine.request import SamplingParams
from anyengine_conformance.context import Context
from anyengine_conformance.families import _forced
from anyengine_conformance.families._exact import robust, shaped
from anyengine_conformance.oracle import EngineOracle
from anyengine_conformance.rounding import measured_gap, shifts
from anyengine_conformance.violation import Violation

MODEL = Path(__file__).parents[2] / "plugins/reference/src/anyengine_reference/models/storyteller"


def score(*tops):
    return Score(list(range(len(tops) + 1)), [None, *(TokenLogprobs(0, min(top.values()), top) for top in tops)])


def test_a_shift_is_what_the_difference_of_the_best_two_has_changed_by():
    exact = score({5: -1.0, 6: -1.5}, {7: -0.5, 8: -3.0})
    coarse = score({6: -1.2, 5: -1.1, 9: -4.0}, {8: -2.0, 7: -0.6, 9: -4.0})
    assert shifts(exact, coarse) == pytest.approx([0.4, 1.1])


def test_a_token_out_of_sight_was_moved_as_far_as_one_can_see():
    assert shifts(score({5: -1.0, 6: -1.5}), score({5: -1.0, 9: -4.0})) == pytest.approx([2.5])
    # Not as far as the text's own token, which stands there however unlikely it is.
    many = {token: -1.0 - token / 10 for token in range(20)}
    assert shifts(score({0: -1.0, 77: -1.5}), score({**many, 99: -30.0})) == pytest.approx([1.4])


class Scripted:
    """Says of every text that the best two are so far apart."""

    def __init__(self, apart):
        self.apart = apart

    async def score(self, token_ids, *, logprobs=0):
        del logprobs
        return score(*({1: -1.0, 2: -1.0 - self.apart} for _ in token_ids[1:]))


async def test_the_gap_has_the_margin_of_the_calibration():
    assert await measured_gap(Scripted(0.5), Scripted(0.1), [[1, 2, 3]] * 4) == pytest.approx(2 * 0.4)


async def test_an_oracle_that_has_no_such_data_type_says_so():
    oracle = await EngineOracle.load("reference", str(MODEL))
    try:
        assert [await oracle.gap(dtype, [[1, 2, 3]]) for dtype in ("bfloat16", "float32", None)] == [None] * 3
    finally:
        await oracle.close()


@pytest.mark.oracle
async def test_an_oracle_measures_the_data_type_on_the_model_once():
    oracle = await EngineOracle.load("transformers", str(MODEL))
    try:
        texts = [list(range(100 + start, 140 + start)) for start in range(0, 400, 40)]
        first = await oracle.gap("bfloat16", texts)
        assert 0.01 < first < 1
        assert await oracle.gap("bfloat16", [[1, 2]]) == first
    finally:
        await oracle.close()


class ScriptedContext:
    """As much of a check's context as judging asks for."""

    dtype = Context.dtype

    def __init__(self, dtype="bfloat16"):
        self.engine = SimpleNamespace(
            info=SimpleNamespace(dtype=dtype), model=SimpleNamespace(eos_token_ids=frozenset())
        )
        self.engine.tokenize = self.engine.detokenize = self.made

    async def made(self, _given):
        return [1, 2, 3]

    async def once(self, _name, make):
        return await make()

    def expect(self, *_args, **_options):
        pass

    def fail(self, *, expected, seen):
        return Violation(expected=expected, seen=seen)


class Judge(Scripted):
    """The chosen token is so far behind; the model's own gap is another."""

    name = "scripted"

    def __init__(self, behind, gap):
        super().__init__(behind)
        self.own = gap
        self.asked = 0

    async def score(self, token_ids, *, logprobs=0):
        del logprobs
        return Score(
            token_ids, [None] * (len(token_ids) - 1) + [TokenLogprobs(2, -1.0 - self.apart, {1: -1.0, 2: -1.0})]
        )

    async def gap(self, dtype, texts):
        assert dtype in {"bfloat16", None}
        assert texts
        self.asked += 1
        return self.own


ANSWER = SimpleNamespace(prompt_token_ids=[7], token_ids=[2], logprobs=None)


@pytest.mark.parametrize(("behind", "gap", "asked"), [(0.2, 0.8, 0), (0.3, 0.8, 1)])
async def test_a_token_within_the_models_own_gap_is_a_near_tie(behind, gap, asked):
    oracle = Judge(behind, gap)
    assert (await _forced.forced(ScriptedContext(), ANSWER, oracle=oracle)).ties == 1
    assert oracle.asked == asked


@pytest.mark.parametrize(
    ("behind", "gap", "shown", "where"),
    [
        (0.9, 0.8, "0.8", "as scripted measures it on this model"),
        (0.3, None, "0.25", "as calibrated on the built-in model"),
        (0.3, 0.1, "0.25", "as scripted measures it on this model"),
    ],
)
async def test_a_token_beyond_it_is_none(behind, gap, shown, where):
    with pytest.raises(Violation, match=f"within {shown} nats of it .*{where}"):
        await _forced.forced(ScriptedContext(), ANSWER, oracle=Judge(behind, gap))


async def test_what_names_no_data_type_has_the_widest_gap_and_is_told_so():
    said = r"within 0\.25 nats of it \(a near-tie in a data type that BackendInfo\.dtype does not name, as calibrated"
    with pytest.raises(Violation, match=said):
        await _forced.forced(ScriptedContext(None), ANSWER, oracle=Judge(0.3, None))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("sampling", "clear"),
    [
        (SamplingParams(top_k=2), True),
        (SamplingParams(top_k=3), False),
        (SamplingParams(min_p=0.3), True),
        (SamplingParams(min_p=0.1), False),
        (SamplingParams(top_p=0.7), True),
        (SamplingParams(top_p=0.9), False),
    ],
    ids=str,
)
def test_an_edge_is_clear_only_if_no_rounding_moves_it(sampling, clear, seed):
    # The third and the fourth are less apart than the gap: by chance alone, few trials of rounding would show it.
    logprobs = {token: math.log(share) for token, share in enumerate((0.5, 0.35, 0.055, 0.045, 0.03, 0.02))}

    def support(values):
        return set(shaped(values, sampling))

    assert robust(SimpleNamespace(seed=seed), logprobs, support, 0.25) is clear
