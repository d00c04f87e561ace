"""Why two engines differ: each cause by a simulated engine that has it."""

import json
import math

import pytest
from anyengine.explain import explain
from anyengine.outputs import Score, TokenLogprobs
from anyengine.testing import EOS, make_model_folder

HELLO = [71, 68, 75, 75, 78]
OTHER = [71, 68, 75, 80, 78]


def scoring(favourite, gap):
    """A ``score`` that prefers one token to every other by so many nats."""

    async def score(token_ids, logprobs):
        def entry(token):
            value = -0.1 if token == favourite else -0.1 - gap
            return TokenLogprobs(token, value, {token: value})

        return Score(list(token_ids), [None, *map(entry, token_ids[1:])])

    return score


async def compared(load, one, other, prompt="hi", **config):
    async with load(one) as (first, _), load(other, **config) as (second, _):
        return await explain(first, second, prompt, max_tokens=8)


async def test_the_same_answer(scripted, load):
    found = await compared(load, scripted(HELLO), scripted(HELLO))
    assert (found.verdict, found.parting, found.texts) == ("same", None, ("hello", "hello"))
    assert [finding.topic for finding in found.findings if not finding.same] == []


@pytest.mark.parametrize(("gap", "verdict"), [(0.1, "near-tie"), (0.5, "defect")])
async def test_where_the_texts_part_the_scores_decide(faulty, load, gap, verdict):
    one, other = faulty(HELLO, score=scoring(75, gap)), faulty(OTHER, score=scoring(80, gap))
    found = await compared(load, one, other)
    assert (found.verdict, found.parting.position, found.parting.tokens) == (verdict, 3, (75, 80))
    assert all(math.isclose(value, gap) for value in found.parting.gaps)


async def test_an_engine_that_does_not_choose_its_best_is_named(faulty, load):
    one, other = faulty(HELLO, score=scoring(75, 2.0)), faulty(OTHER, score=scoring(75, 2.0))
    found = await compared(load, one, other)
    assert (found.verdict, "the second did not choose what it scores highest" in found.summary) == ("defect", True)


async def test_one_ends_where_the_other_goes_on(scripted, load, tmp_path):
    folder = make_model_folder(tmp_path / "other")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, HELLO[-1]]}))
    async with (
        load(scripted([*HELLO, 13]), model=str(folder)) as (first, _),
        load(scripted([*HELLO, 13])) as (second, _),
    ):
        found = await explain(first, second, "hi", max_tokens=8)
    assert (found.verdict, found.parting.position, found.parting.tokens) == ("stopping", 5, (None, 13))
    assert [f.topic for f in found.findings if not f.same] == ["model", "end-of-sequence tokens", "finish"]


async def test_another_chat_template_is_found_before_anything_else(scripted, load):
    messages = [{"role": "user", "content": "hi"}]
    found = await compared(load, scripted(HELLO), scripted(OTHER), messages, chat_template="X{{ messages[0].content }}")
    assert (found.verdict, "chat templates differ" in found.summary) == ("prompt", True)


async def test_another_checkpoint_is_the_reason(scripted, load, tmp_path):
    folder = make_model_folder(tmp_path / "other")
    found = await compared(load, scripted(HELLO), scripted(OTHER), model=str(folder))
    assert (found.verdict, found.findings[0].same) == ("model", False)


async def test_without_scores_it_cannot_be_told(scripted, load):
    from anyengine.testing import all_capabilities
    from msgspec.structs import replace

    blind = replace(all_capabilities(), score=False)
    found = await compared(load, scripted(HELLO, capabilities=blind), scripted(OTHER, capabilities=blind))
    assert (found.verdict, found.parting.gaps) == ("unknown", (None, None))
