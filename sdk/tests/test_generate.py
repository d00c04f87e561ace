"""What comes back: text, tokens, accounting; stop strings, stop tokens, log-probabilities, timings."""

import msgspec
import pytest
from anyengine import Chunk, Completion, InvalidRequest, SamplingParams, Score, Structured
from anyengine.testing import EOS
from hypothesis import given, settings
from hypothesis import strategies as st

HELLO = [71, 68, 75, 75, 78, 220, 86, 78, 81, 75, 67, 13, 220]  # "hello world. "


async def collected(stream):
    async with stream as chunks:
        return [chunk async for chunk in chunks]


async def test_generate_and_stream_say_the_same(scripted, load):
    async with load(scripted(HELLO)) as (engine, _):
        answer = await engine.generate("hi", logprobs=0, prompt_logprobs=0)
        chunks = await collected(engine.stream("hi", logprobs=0, prompt_logprobs=0))
        finish = chunks[-1].finish
        assert answer.text == "".join(chunk.text for chunk in chunks) == "hello world. "
        assert answer.token_ids == [t for chunk in chunks for t in chunk.token_ids] == [*HELLO, EOS]
        assert answer.logprobs == [entry for chunk in chunks for entry in chunk.logprobs]
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        assert (answer.finish_reason, answer.stop_reason) == (finish.reason, finish.stop_reason) == ("stop", EOS)
        assert answer.usage == finish.usage
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 14, 16)
        assert answer.prompt_logprobs == finish.prompt_logprobs
        assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_the_length_limit_ends_it(scripted, load):
    async with load(scripted(HELLO)) as (engine, _):
        answer = await engine.generate("hi", max_tokens=5)
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ("hello", "length", None)


async def test_without_a_limit_the_rest_of_the_context_is_sent(scripted, load):
    async with load(scripted(HELLO), max_model_len=10) as (engine, backend):
        answer = await engine.generate("hi")
        assert (backend.requests[0].max_tokens, len(answer.token_ids), answer.finish_reason) == (8, 8, "length")


async def test_timings_are_in_order(scripted, load):
    async with load(scripted(HELLO)) as (engine, _):
        for options in ({}, {"stop": "zz"}):
            timings = (await engine.generate("hi", **options)).timings
            assert 0 <= timings.queue <= timings.total
            assert (timings.time_to_first_token is None) == (not options)
            if options:
                assert timings.queue <= timings.time_to_first_token <= timings.total


# -- stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_a_stop_string_cuts_text_tokens_and_logprobs_alike(endless, load, kind, include):
    async with load(endless(step_seconds=0.0001)) as (engine, backend):
        options = {"stop": ["rld", "xyz"], "include_stop": include, "logprobs": 0, "prompt_logprobs": 0}
        if kind == "generate":
            answer = await engine.generate("hi", **options)
            text, tokens, entries = answer.text, answer.token_ids, answer.logprobs
            end, reason = answer, answer.finish_reason
        else:
            chunks = await collected(engine.stream("hi", **options))
            text, tokens, entries = (
                "".join(c.text for c in chunks),
                [t for c in chunks for t in c.token_ids],
                [e for c in chunks for e in c.logprobs],
            )
            end, reason = chunks[-1].finish, chunks[-1].finish.reason
        assert (text, tokens) == ("hello world" if include else "hello wo", HELLO[:11])
        assert (reason, end.stop_reason) == ("stop", "rld")
        assert [entry.token_id for entry in entries] == tokens
        assert end.usage.completion_tokens == len(tokens)
        assert (end.usage.cached_tokens, len(end.prompt_logprobs)) == (0, 2)
        assert backend.aborted == [backend.requests[0].id]


async def test_tokens_that_ran_ahead_are_discarded(faulty, load):
    from anyengine.backend import TokenDelta, TokenFinish

    async def stream(request):
        yield TokenDelta([*HELLO, EOS], None, TokenFinish("stop", cached_tokens=1))

    async with load(faulty(stream=stream)) as (engine, _):
        answer = await engine.generate("hi", stop="lo")
        assert (answer.text, answer.token_ids, answer.usage.completion_tokens) == ("hel", HELLO[:5], 5)
        assert (answer.stop_reason, answer.usage.cached_tokens) == ("lo", 1)


@settings(max_examples=150)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    stop=st.sampled_from(["hello world. hello", "lo", "o w", " ", "zz", ". h", "h"]),
    min_tokens=st.integers(0, 12),
    include=st.booleans(),
)
def test_how_the_engine_cuts_its_tokens_makes_no_difference(cuts, stop, min_tokens, include):
    from anyengine.text.detokenizer import Detokenizer

    tokens = HELLO * 3
    text = "hello world. " * 3
    # The definition: the first occurrence that is completed by a token after the first min_tokens.
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(stop) and end > min_tokens]
    expected = (text[: ends[0] if include else ends[0] - len(stop)], ends[0]) if ends else (text, len(tokens))
    detokenizer = Detokenizer(TABLE, stops=(stop,), min_tokens=min_tokens, include_stop=include)
    out, rest, index = "", tokens, 0
    while rest and detokenizer.stopped is None:
        size = cuts[index % len(cuts)]
        out += detokenizer.feed(rest[:size])
        rest, index = rest[size:], index + 1
    out += detokenizer.finish()
    assert (out, detokenizer.num_tokens) == expected


def _table():
    import tempfile
    from pathlib import Path

    from anyengine.testing import make_model_folder
    from anyengine.text.tokenizer import TextTokenizer

    with tempfile.TemporaryDirectory() as folder:
        return TextTokenizer.load(make_model_folder(Path(folder))).table


TABLE = _table()


async def test_min_tokens_holds_for_stop_strings(scripted, load):
    async with load(scripted(HELLO)) as (engine, backend):
        answer = await engine.generate("hi", stop="l", min_tokens=4)
        assert (answer.text, answer.token_ids) == ("hello wor", HELLO[:10])
        assert backend.requests[0].min_tokens == 4


@pytest.mark.parametrize(
    ("include", "skip", "text"), [(False, True, "h"), (True, True, "h"), (True, False, "h<|end|>")]
)
async def test_the_terminating_token_counts_but_is_no_text(scripted, load, include, skip, text):
    async with load(scripted([71])) as (engine, _):
        answer = await engine.generate("hi", include_stop=include, skip_special_tokens=skip)
        assert (answer.text, answer.token_ids, answer.stop_reason) == (text, [71, EOS], EOS)


async def test_stop_tokens_end_it_and_are_named(scripted, load):
    async with load(scripted(HELLO)) as (engine, backend):
        answer = await engine.generate("hi", stop_token_ids=[78])
        assert (answer.text, answer.token_ids, answer.stop_reason) == ("hell", HELLO[:5], 78)
        assert backend.requests[0].terminators == {256, 258, 78}


async def test_ignore_eos_sends_no_end_tokens_and_special_tokens_are_text_if_not_skipped(scripted, load):
    async with load(scripted([71, EOS, 68])) as (engine, backend):
        answer = await engine.generate("hi", ignore_eos=True, max_tokens=3, skip_special_tokens=False)
        assert (answer.text, answer.token_ids, answer.finish_reason) == ("h<|end|>e", [71, EOS, 68], "length")
        assert backend.requests[0].eos_token_ids == frozenset()


async def test_a_character_that_never_becomes_whole_is_replaced_at_the_end(scripted, load):
    async with load(scripted()) as (engine, _):
        euro = await engine.tokenize("€")
        assert len(euro) == 3
    async with load(scripted(euro[:2])) as (engine, _):
        answer = await engine.generate("hi")
        chunks = await collected(engine.stream("hi"))
        assert answer.text == "".join(c.text for c in chunks) == "\ufffd"


# -- text without a generation ---------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("prompt", ["some text", [65, 66, 67], CHAT])
async def test_tokenize_is_what_generate_sends(scripted, load, prompt):
    async with load(scripted()) as (engine, backend):
        tokens = await engine.tokenize(prompt)
        answer = await engine.generate(prompt, max_tokens=1)
        assert backend.requests[-1].prompt_token_ids == tokens == answer.prompt_token_ids
        assert await engine.count_tokens(prompt) == len(tokens) == answer.usage.prompt_tokens
        score = await engine.score(prompt)
        assert (score.token_ids, len(score.logprobs)) == (tokens, len(tokens) - 1)
        assert score.total == sum(score.logprobs)


async def test_messages_are_the_same_by_both_ways_in(scripted, load):
    async with load(scripted()) as (engine, backend):
        await engine.generate(messages=CHAT, max_tokens=1)
        await engine.generate(CHAT, max_tokens=1)
        assert backend.requests[0].prompt_token_ids == backend.requests[1].prompt_token_ids
        text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert backend.requests[0].prompt_text == text == await engine.apply_chat_template(CHAT)
        assert await engine.detokenize(backend.requests[0].prompt_token_ids, skip_special_tokens=False) == text


async def test_chat_template_kwargs_reach_the_template(scripted, load):
    template = "{% if loud %}{{ messages[0].content | upper }}{% else %}{{ messages[0].content }}{% endif %}"
    async with load(scripted(), chat_template=template) as (engine, backend):
        await engine.generate(CHAT, max_tokens=1, chat_template_kwargs={"loud": True})
        assert backend.requests[0].prompt_text == "HI"
        assert await engine.tokenize(CHAT, chat_template_kwargs={"loud": True}) == await engine.tokenize("HI")


REFUSED = [
    (lambda e: e.tokenize("x", chat_template_kwargs={"a": 1}), "chat_template_kwargs"),
    (lambda e: e.tokenize([1], add_special_tokens=False), "add_special_tokens"),
    (lambda e: e.tokenize(CHAT, add_special_tokens=False), "add_special_tokens"),
    (lambda e: e.tokenize(""), "prompt"),
    (lambda e: e.count_tokens(5), "prompt"),
    (lambda e: e.detokenize("abc"), "token_ids"),
    (lambda e: e.detokenize(["a"]), "token_ids"),
    (lambda e: e.detokenize(5), "token_ids"),
    (lambda e: e.apply_chat_template([]), "messages"),
    (lambda e: e.apply_chat_template([{"content": "x"}]), "messages[0].role"),
    (lambda e: e.score([1]), "prompt"),
    (lambda e: e.score([1, 259]), "prompt"),
    (lambda e: e.score([1, 2], logprobs=-1), "logprobs"),
    (lambda e: e.score([1, 2], logprobs=True), "logprobs"),
    (lambda e: e.score([1, 2], logprobs=6), "logprobs"),
    (lambda e: e.score([1] * 5000), "prompt"),
]


@pytest.mark.parametrize(("call", "field"), REFUSED, ids=range(len(REFUSED)))
async def test_the_helpers_refuse_in_the_same_words(scripted, load, call, field):
    async with load(scripted()) as (engine, _):
        with pytest.raises(InvalidRequest) as caught:
            await call(engine)
        assert caught.value.field == field


async def test_long_texts_are_tokenised_off_the_loop_with_the_same_result(scripted, load):
    async with load(scripted(), max_model_len=100_000) as (engine, _):
        assert await engine.tokenize("ab" * 20_000) == (await engine.tokenize("ab")) * 20_000


# -- results as data ---------------------------------------------------------------------------------------------


async def test_results_survive_json(scripted, load):
    async with load(scripted(HELLO)) as (engine, _):
        answer = await engine.generate("hi", n=2, logprobs=1, prompt_logprobs=1, stop="zz")
        chunks = await collected(engine.stream("hi", logprobs=1))
        score = await engine.score("hi")
        for value, kind in ((answer, Completion), (chunks, list[Chunk]), (score, Score)):
            assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind) == value


async def test_every_field_reaches_the_backend(scripted, load):
    sampling = SamplingParams(temperature=0.5, logit_bias={3: 1.0}, allowed_token_ids=[71, EOS], bad_words=["zz"])
    async with load(scripted([71])) as (engine, backend):
        await engine.generate(
            "hi",
            sampling=sampling,
            max_tokens=7,
            min_tokens=1,
            stop_token_ids=[9],
            priority=3,
            cache_salt="s",
            structured=Structured(choice=["a"]),
            logprobs=2,
            prompt_logprobs=3,
        )
        request = backend.requests[0]
        assert request.sampling == sampling.model_copy(update={"seed": request.sampling.seed})
        assert (request.max_tokens, request.min_tokens, request.stop_token_ids) == (7, 1, frozenset({9}))
        assert (request.priority, request.cache_salt, request.structured.kind) == (3, "s", "choice")
        assert (request.logprobs, request.prompt_logprobs, request.lora) == (2, 3, None)
        assert len(request.bad_word_ids) >= 1
