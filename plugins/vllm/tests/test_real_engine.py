"""One loaded vLLM, and all that is asked of it."""

import asyncio
import json
import math
import random
from contextlib import asynccontextmanager

import pytest
from anyengine import Engine, SamplingParams, Structured
from anyengine.errors import InvalidRequest, UnsupportedParameter

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

PROMPT = "Once upon a time, there was a little"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
async def engine(small, storyteller, make_adapter):
    adapters = {"one": str(make_adapter(1)), "two": str(make_adapter(2))}
    async with Engine.load(
        "vllm",
        str(storyteller),
        **small | {"kv_cache": {"capacity_tokens": 16384, "block_size": 32}},
        scheduling={"max_num_seqs": 32},
        lora={"adapters": adapters, "max_rank": 4, "max_loras": 2},
        seed=1,
    ) as engine:
        yield engine


async def _text(engine, **options):
    options = {"sampling": GREEDY, "max_tokens": 24, **options}
    return (await engine.generate(PROMPT, **options)).text


# -- generating ----------------------------------------------------------------------------------------------


async def test_stream_and_generate_give_the_same_tokens(engine):
    # Long, for a reader that is kept from reading gets what has come meanwhile in one chunk.
    alike = {"sampling": GREEDY, "max_tokens": 300, "ignore_eos": True}
    whole = await engine.generate(PROMPT, **alike)
    async with engine.stream(PROMPT, **alike) as stream:
        chunks = [chunk async for chunk in stream]
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) > 1  # how many depends on how quick the reader is


async def test_a_chat_is_answered(engine):
    answer = await engine.generate(messages=[{"role": "user", "content": "Tell me a story"}], max_tokens=16)
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
    assert len(answer.token_ids) <= 16


async def test_an_end_of_sequence_token_ends_the_answer_and_is_its_last_token(engine):
    answer = await engine.generate(PROMPT, sampling=GREEDY)
    assert answer.finish_reason == "stop"
    assert answer.stop_reason == answer.token_ids[-1]
    assert answer.token_ids[-1] in engine.model.eos_token_ids


async def test_ignore_eos_goes_on_to_max_tokens_and_keeps_the_callers_stops(engine):
    natural = await engine.generate(PROMPT, sampling=GREEDY)
    length = len(natural.token_ids) + 8
    longer = await engine.generate(PROMPT, sampling=GREEDY, ignore_eos=True, max_tokens=length)
    assert (longer.finish_reason, len(longer.token_ids)) == ("length", length)
    assert longer.token_ids[: len(natural.token_ids)] == natural.token_ids
    stop = natural.token_ids[5]
    stopped = await engine.generate(PROMPT, sampling=GREEDY, ignore_eos=True, stop_token_ids=[stop])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.token_ids == natural.token_ids[: natural.token_ids.index(stop) + 1]


async def test_min_tokens_holds_back_every_terminator(engine):
    natural = await engine.generate(PROMPT, sampling=GREEDY)
    stop = natural.token_ids[3]
    least = len(natural.token_ids) + 5
    held = await engine.generate(PROMPT, sampling=GREEDY, min_tokens=least, stop_token_ids=[stop], max_tokens=400)
    terminators = engine.model.eos_token_ids | {stop}
    assert not terminators & set(held.token_ids[:least])
    assert len(held.token_ids) > least


async def test_min_tokens_with_ignore_eos_leaves_end_of_sequence_tokens_alone(engine):
    natural = await engine.generate(PROMPT, sampling=GREEDY)
    length = len(natural.token_ids) + 3
    both = await engine.generate(PROMPT, sampling=GREEDY, ignore_eos=True, min_tokens=length, max_tokens=length)
    assert both.token_ids[: len(natural.token_ids)] == natural.token_ids


async def test_max_tokens_is_the_rest_of_the_context_if_left_out(engine):
    ids = [5] * 1000
    answer = await engine.generate(ids, sampling=GREEDY, ignore_eos=True)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 24)


async def test_a_prompt_that_fills_the_context_is_refused(engine):
    with pytest.raises(InvalidRequest) as caught:
        await engine.generate([5] * 1024)
    assert caught.value.field == "prompt"


async def test_n_answers_differ_and_are_repeated_by_their_seeds(engine):
    first = await engine.generate(PROMPT, sampling=SamplingParams(seed=3), n=4, max_tokens=16)
    again = await engine.generate(PROMPT, sampling=SamplingParams(seed=3), n=4, max_tokens=16)
    assert [c.token_ids for c in first.choices] == [c.token_ids for c in again.choices]
    assert len({tuple(c.token_ids) for c in first.choices}) > 1


async def test_unseeded_answers_vary(engine):
    texts = [(await engine.generate(PROMPT, max_tokens=24)).text for _ in range(4)]
    assert len(set(texts)) > 1


async def test_priority_and_cache_salt_are_taken(engine):
    urgent, later = await asyncio.gather(_text(engine, priority=-1), _text(engine, priority=5))
    assert urgent == later


async def test_a_salt_parts_the_prefix_cache(engine):
    ids = [7] * 256

    async def cached(salt):
        return (await engine.generate(ids, sampling=GREEDY, max_tokens=1, cache_salt=salt)).usage.cached_tokens

    assert await cached("a") == 0
    assert await cached("b") == 0
    assert await cached("a") >= 224


# -- every sampling field has an effect -----------------------------------------------------------------------


async def _distribution(engine, ids, sampling, draws=400):
    """Frequencies of the first token over many seeds."""
    request = {"max_tokens": 1, "ignore_eos": True}
    answers = await engine.generate([ids] * draws, sampling=sampling.model_copy(update={"seed": None}), **request)
    counts = {}
    for answer in answers:
        counts[answer.token_ids[0]] = counts.get(answer.token_ids[0], 0) + 1
    return counts


@asynccontextmanager
async def _top(engine, k=1000):
    """Most likely first tokens with their log-probabilities."""
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=1, logprobs=k)
    yield answer.prompt_token_ids, answer.logprobs[0].top


def _with_ties(top, k):
    """The k most likely tokens, and those that are as likely as the last of them: common in bf16."""
    least = list(top.values())[k - 1]
    return [token for token, logprob in top.items() if logprob >= least]


async def test_top_k_draws_from_the_k_most_likely(engine):
    async with _top(engine) as (ids, top):
        drawn = await _distribution(engine, ids, SamplingParams(top_k=3, temperature=2.0))
        assert set(drawn) == set(_with_ties(top, 3))


async def test_top_p_draws_from_the_smallest_set_that_reaches_it(engine):
    async with _top(engine) as (ids, top):
        total, kept = 0.0, []
        for token, logprob in top.items():
            kept.append(token)
            total += math.exp(logprob)
            if total >= 0.5:
                break
        drawn = await _distribution(engine, ids, SamplingParams(top_p=0.5))
        assert set(drawn) <= set(kept)
        assert len(drawn) > 1


async def test_min_p_draws_from_those_that_are_likely_enough(engine):
    async with _top(engine) as (ids, top):
        most = max(top.values())
        kept = {token for token, logprob in top.items() if logprob >= most + math.log(0.2)}
        drawn = await _distribution(engine, ids, SamplingParams(min_p=0.2))
        assert set(drawn) <= kept
        assert len(drawn) > 1


async def test_top_k_and_top_p_together_renormalise_after_top_k(engine):
    async with _top(engine) as (ids, top):
        first = [math.exp(top[token]) for token in _with_ties(top, 8)]
        share, kept, total = sum(first), [], 0.0
        for token, probability in zip(top, first, strict=False):
            kept.append(token)
            total += probability / share
            if total >= 0.6:
                break
        drawn = await _distribution(engine, ids, SamplingParams(top_k=8, top_p=0.6))
        assert set(drawn) <= set(kept)


async def test_temperature_flattens(engine):
    async with _top(engine) as (ids, _):
        cold = await _distribution(engine, ids, SamplingParams(temperature=0.1))
        hot = await _distribution(engine, ids, SamplingParams(temperature=2.0))
        assert len(cold) < len(hot)


async def test_a_temperature_that_vllm_would_alter_is_refused(engine):
    for temperature in (0.005, 2.5):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate(PROMPT, sampling=SamplingParams(temperature=temperature))
        assert caught.value.field == "sampling.temperature"


@pytest.mark.parametrize("field", [{"repetition_penalty": 1.8}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
async def test_penalties_change_a_greedy_answer(engine, field):
    plain = await _text(engine, max_tokens=64, ignore_eos=True)
    assert await _text(engine, sampling=SamplingParams(temperature=0, **field), max_tokens=64, ignore_eos=True) != plain


async def test_presence_and_frequency_penalties_count_the_completion_only(engine):
    async with _top(engine) as (ids, top):
        first = next(iter(top))
        # The prompt has the token, the completion does not.
        prompt = [*ids, first, *ids]
        plain = await engine.generate(prompt, sampling=GREEDY, max_tokens=1)
        first = plain.token_ids[0]
        assert first in prompt
        sampling = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
        answer = await engine.generate(prompt, sampling=sampling, max_tokens=1)
        assert answer.token_ids == [first]


async def test_logit_bias_is_added_and_not_clamped(engine):
    async with _top(engine) as (ids, top):
        token = 3000
        sampling = SamplingParams(temperature=0, logit_bias={token: 500.0, next(iter(top)): 300.0})
        answer = await engine.generate(ids, sampling=sampling, max_tokens=1)
        assert answer.token_ids == [token]


async def test_allowed_token_ids_are_the_only_ones(engine):
    allowed = [100, 200, 300]
    answer = await engine.generate(PROMPT, sampling=SamplingParams(allowed_token_ids=allowed), max_tokens=16)
    assert set(answer.token_ids) <= set(allowed)


def _appears(word, ids):
    return any(ids[start : start + len(word)] == word for start in range(len(ids)))


async def test_bad_words_of_one_and_of_several_tokens_do_not_appear(engine):
    plain = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=60)
    # A full stop, and what follows one: spelt the same at the start of a text as within.
    stop = plain.text.index(".")
    follower = plain.text[stop:].split()[1].strip(",.")
    for word in (".", f". {follower}"):
        banned = await engine.tokenize(word, add_special_tokens=False)
        assert _appears(banned, plain.token_ids)
        sampling = SamplingParams(temperature=0, bad_words=[word])
        without = await engine.generate(PROMPT, sampling=sampling, max_tokens=60)
        assert not _appears(banned, without.token_ids)
        # Up to there nothing changes: only the last token of a bad word is banned, where the others precede.
        first = next(i for i in range(60) if plain.token_ids[i : i + len(banned)] == banned)
        assert without.token_ids[: first + len(banned) - 1] == plain.token_ids[: first + len(banned) - 1]


async def test_a_bad_word_that_the_prompt_began_may_be_ended(engine):
    plain = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=60)
    at = plain.token_ids.index((await engine.tokenize(".", add_special_tokens=False))[0])
    word = await engine.detokenize(plain.token_ids[at : at + 2])
    assert await engine.tokenize(word, add_special_tokens=False) == plain.token_ids[at : at + 2]
    begun = plain.prompt_token_ids + plain.token_ids[: at + 1]
    sampling = SamplingParams(temperature=0, bad_words=[word])
    assert (await engine.generate(begun, sampling=sampling, max_tokens=1)).token_ids == [plain.token_ids[at + 1]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling": SamplingParams(min_p=0.1, top_p=0.9)}, "sampling"),
        ({"sampling": SamplingParams(logit_bias={1: 1.0}, repetition_penalty=1.2)}, "sampling"),
        ({"structured": Structured(regex="a+"), "min_tokens": 3}, ""),
        ({"structured": Structured(regex="a+"), "ignore_eos": True}, ""),
        ({"structured": Structured(regex="a+"), "logprobs": 1}, "logprobs"),
        ({"structured": Structured(regex="a+"), "sampling": SamplingParams(bad_words=["a"])}, ""),
    ],
)
async def test_what_means_something_else_together_is_refused(engine, fields, named):
    with pytest.raises(UnsupportedParameter) as caught:
        await engine.generate(PROMPT, **fields)
    assert caught.value.field.startswith(named)


async def test_nothing_left_to_draw_is_refused(engine):
    with pytest.raises(InvalidRequest):
        await engine.generate(PROMPT, sampling=SamplingParams(allowed_token_ids=[9]), stop_token_ids=[9], min_tokens=2)


# -- log-probabilities ----------------------------------------------------------------------------------------


async def test_logprobs_are_of_the_raw_distribution_whatever_is_sampled(engine):
    plain = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=1, logprobs=5)
    token = list(plain.logprobs[0].top)[3]
    shaped = SamplingParams(
        temperature=0.7, top_k=50, presence_penalty=1.0, logit_bias={token: 60.0}, allowed_token_ids=[token, 5]
    )
    forced = await engine.generate(PROMPT, sampling=shaped, max_tokens=1, logprobs=5)
    assert forced.token_ids == [token]
    assert forced.logprobs[0].logprob == pytest.approx(plain.logprobs[0].top[token], abs=1e-5)
    assert forced.logprobs[0].top == pytest.approx(plain.logprobs[0].top, abs=1e-5)


async def test_alternatives_are_the_most_likely_first_with_the_chosen_one(engine):
    answer = await engine.generate(PROMPT, sampling=SamplingParams(temperature=2.0, seed=5), max_tokens=24, logprobs=2)
    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        assert entry.token_id == token
        assert entry.top[token] == entry.logprob
        assert list(entry.top.values()) == sorted(entry.top.values(), reverse=True)
        assert len(entry.top) in {2, 3}
    assert any(len(entry.top) == 3 for entry in answer.logprobs)


async def test_no_alternatives_are_the_chosen_token_alone(engine):
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=4, logprobs=0)
    assert [list(entry.top) for entry in answer.logprobs] == [[token] for token in answer.token_ids]


async def test_a_thousand_alternatives_add_up(engine):
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=1, logprobs=1000)
    assert len(answer.logprobs[0].top) == 1000
    assert sum(map(math.exp, answer.logprobs[0].top.values())) == pytest.approx(1.0, abs=0.05)


async def test_scores_are_the_logprobs_of_generation_and_of_the_prompt(engine, rounding):
    answer = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=16, logprobs=0, prompt_logprobs=0)
    ids = answer.prompt_token_ids + answer.token_ids
    score = await engine.score(ids)
    expected = [entry.logprob for entry in (*answer.prompt_logprobs[1:], *answer.logprobs)]
    assert score.logprobs == pytest.approx(expected, abs=rounding)
    assert answer.prompt_logprobs[0] is None
    assert [entry.token_id for entry in answer.prompt_logprobs[1:]] == answer.prompt_token_ids[1:]


async def test_a_full_context_can_be_scored(engine):
    assert len((await engine.score([3, 9] * 512)).entries) == 1024


async def test_prompt_logprobs_are_whole_though_the_prefix_is_cached(engine):
    ids = [11, 12, 13, 14] * 40
    await engine.generate(ids, sampling=GREEDY, max_tokens=1)
    answer = await engine.generate(ids, sampling=GREEDY, max_tokens=1, prompt_logprobs=1)
    assert len(answer.prompt_logprobs) == len(ids)


async def test_a_stream_has_the_same_prompt_logprobs_as_a_whole_answer(engine, rounding):
    # So many that on a busy machine, too, they come in more than one chunk.
    request = {"sampling": GREEDY, "max_tokens": 200, "ignore_eos": True, "prompt_logprobs": 2}
    whole = await engine.generate(PROMPT, **request)
    async with engine.stream(PROMPT, **request) as stream:
        chunks = [chunk async for chunk in stream]
    streamed = chunks[-1].finish.prompt_logprobs
    assert len(chunks) > 1
    assert streamed[0] is None
    assert [entry.token_id for entry in streamed[1:]] == whole.prompt_token_ids[1:]
    expected = [entry.logprob for entry in whole.prompt_logprobs[1:]]
    assert [entry.logprob for entry in streamed[1:]] == pytest.approx(expected, abs=rounding)


async def test_a_stop_string_in_a_stream_leaves_the_prompt_logprobs(engine):
    whole = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
    request = {"sampling": GREEDY, "max_tokens": 32, "prompt_logprobs": 0, "stop": [whole.text[8:12]]}
    async with engine.stream(PROMPT, **request) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].finish.reason == "stop"
    assert len(chunks[-1].finish.prompt_logprobs) == len(whole.prompt_token_ids)


# -- structured output ----------------------------------------------------------------------------------------


async def test_a_choice_is_one_of_the_strings(engine):
    answer = await engine.generate(PROMPT, structured=Structured(choice=["a red fox", "a blue bird"]), max_tokens=40)
    assert (answer.text in {"a red fox", "a blue bird"}, answer.finish_reason) == (True, "stop")


async def test_a_regex_matches_the_whole_answer(engine):
    answer = await engine.generate(PROMPT, structured=Structured(regex=r"[0-9]{3}-[a-f]{2}"), max_tokens=40)
    head, tail = answer.text.split("-")
    assert (len(head), head.isdigit(), len(tail), set(tail) <= set("abcdef")) == (3, True, 2, True)


async def test_a_json_schema_accepts_the_answer(engine):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "tall": {"type": "boolean"}},
        "required": ["age", "tall"],
        "additionalProperties": False,
    }
    answer = await engine.generate(
        PROMPT, sampling=SamplingParams(temperature=0.5), structured=Structured(json_schema=schema), max_tokens=400
    )
    data = json.loads(answer.text)
    assert (set(data), type(data["age"]), type(data["tall"])) == ({"age", "tall"}, int, bool)


@pytest.mark.parametrize("schema", [True, {"$ref": "#/$defs/a", "$defs": {"a": {"enum": ["x", "y"]}}}])
async def test_schemas_of_other_shapes_are_taken(engine, schema):
    answer = await engine.generate(PROMPT, structured=Structured(json_schema=schema), max_tokens=30)
    if schema is not True:
        assert json.loads(answer.text) in {"x", "y"}


async def test_a_grammar_is_in_larks_notation(engine):
    grammar = 'start: item ("," item)~2\nitem: "cat" | "dog" | NUMBER\nNUMBER: /[0-9]+/\n'
    answer = await engine.generate(PROMPT, structured=Structured(grammar=grammar), max_tokens=60)
    items = answer.text.split(",")
    if answer.finish_reason == "stop":
        assert len(items) == 3
    assert all(item in {"cat", "dog"} or item.isdigit() for item in items[:-1])


@pytest.mark.parametrize(
    "structured",
    [
        Structured(grammar="start: nothing_of_that_name"),
        Structured(regex="(unclosed"),
        Structured(json_schema={"type": "nonsense"}),
    ],
)
async def test_a_constraint_that_cannot_be_compiled_is_refused_before_anything_runs(engine, structured):
    before = (await engine.stats()).requests
    with pytest.raises(InvalidRequest) as caught:
        await engine.generate([PROMPT, PROMPT], structured=structured)
    assert f"structured.{structured.kind}" in caught.value.field
    assert (await engine.stats()).requests == before


# -- adapters -------------------------------------------------------------------------------------------------


async def test_adapters_change_the_answer_each_in_its_way(engine):
    # Alone and together; a request without an adapter in a batch with others has none either.
    texts = [await _text(engine, lora=name) for name in (None, "one", "two")]
    assert len(set(texts)) == 3
    assert await _text(engine) == texts[0]
    together = await asyncio.gather(*(_text(engine, lora=name) for name in (None, "one", "two")))
    assert list(together) == texts


async def test_adapters_come_and_go_while_the_engine_runs(engine, make_adapter):
    assert engine.info.loras == ("one", "two")
    one = await _text(engine, lora="one")
    await engine.unload_lora("one")
    # Another adapter under the same name, though prompts of the first are in the prefix cache.
    await engine.load_lora("one", make_adapter(9))
    other = await _text(engine, lora="one")
    assert other not in {one, await _text(engine)}
    if engine.info.device == "cpu":
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.load_lora("three", make_adapter(3))
        assert caught.value.field == "lora.max_loras"
    await engine.unload_lora("one")
    with pytest.raises(UnsupportedParameter) as caught:
        await engine.load_lora("large", make_adapter(3, rank=8))
    assert "max_rank" in caught.value.message
    await engine.load_lora("one", make_adapter(1))
    assert await _text(engine, lora="one") == one


async def test_the_prefix_cache_is_emptied_also_under_load(engine):
    ids = [21, 22, 23] * 100
    expected = await engine.generate(ids, sampling=GREEDY, max_tokens=100, ignore_eos=True)
    async with engine.stream(ids, sampling=GREEDY, max_tokens=100, ignore_eos=True) as stream:
        # With its first chunk it has begun; a look at statistics may come when it has ended.
        chunks = [await anext(aiter(stream))]
        await engine.reset_prefix_cache()
        chunks += [chunk async for chunk in stream]
    assert [token for chunk in chunks for token in chunk.token_ids] == expected.token_ids
    await engine.reset_prefix_cache()
    assert (await engine.generate(ids, sampling=GREEDY, max_tokens=1)).usage.cached_tokens == 0


async def test_an_unknown_adapter_is_refused(engine):
    with pytest.raises(InvalidRequest) as caught:
        await engine.generate(PROMPT, lora="three")
    assert caught.value.field == "lora"


# -- cancelling and counting ----------------------------------------------------------------------------------


async def test_statistics_add_up(engine):
    before = await engine.stats()
    answers = await engine.generate([PROMPT] * 3, sampling=GREEDY, max_tokens=10, ignore_eos=True)
    after = await engine.stats()
    assert after.requests["length"] - before.requests["length"] == 3
    assert after.generated_tokens - before.generated_tokens == sum(len(a.token_ids) for a in answers)
    assert after.prompt_tokens - before.prompt_tokens == sum(len(a.prompt_token_ids) for a in answers)
    assert after.kv_cache.prefix_queries > before.kv_cache.prefix_queries
    assert after.kv_cache.capacity_tokens == 16384
    assert after.time_to_first_token.count - before.time_to_first_token.count == 3
    assert after.inter_token_latency.count - before.inter_token_latency.count == 27
    assert after.queue_time.count - before.queue_time.count == 3
    assert (after.running, after.waiting, after.speculative) == (0, 0, None)


async def test_leaving_a_stream_frees_the_engine(engine):
    for _ in range(20):  # on a busy machine the engine may have come to the end before the first chunk is here
        before = await engine.stats()
        async with engine.stream(PROMPT, ignore_eos=True, max_tokens=900) as stream:
            async for _ in stream:
                during = await engine.stats()
                break
        after = await engine.stats()
        if during.running:
            break
    assert during.running == 1
    assert during.kv_cache.used_tokens > 0
    assert (after.running, after.kv_cache.used_tokens) == (0, before.kv_cache.used_tokens)
    assert after.requests["abort"] == before.requests["abort"] + 1
    assert after.queue_time.count == before.queue_time.count + 1


async def test_what_a_stop_string_ended_has_waited_too(engine):
    whole = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32)
    before = await engine.stats()
    stopped = await engine.generate(PROMPT, sampling=GREEDY, max_tokens=32, stop=[whole.text[8:12]])
    after = await engine.stats()
    assert (stopped.finish_reason, after.requests["abort"]) == ("stop", before.requests["abort"] + 1)
    assert after.queue_time.count == before.queue_time.count + 1


async def test_three_hundred_requests_cancelled_at_random_leave_nothing(engine):
    before = await engine.stats()
    chance = random.Random(5)  # noqa: S311 a schedule, not a secret

    async def one(number):
        async with engine.stream([number % 4000] * chance.randint(2, 200), ignore_eos=True, max_tokens=60) as stream:
            seen, leave = 0, chance.randint(0, 30)
            async for _ in stream:
                seen += 1
                if seen >= leave:
                    return

    tasks = [asyncio.create_task(one(number)) for number in range(300)]
    for task in chance.sample(tasks, 100):
        asyncio.get_running_loop().call_later(chance.random() * 5, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    after = await engine.stats()
    assert (after.running, after.waiting) == (0, 0)
    assert after.kv_cache.used_tokens == before.kv_cache.used_tokens == 0
    assert await _text(engine) == await _text(engine)


async def test_health_asks_down_to_the_workers(engine):
    await engine.health()
