"""Streams: deltas, one terminal chunk, and the same content as the final result."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from anyengine import InvalidRequest, Misuse, SamplingParams

from anyengine_conformance.at_once import together
from anyengine_conformance.check import check, family

if TYPE_CHECKING:
    from anyengine_conformance.context import Context, Streamed

family("streaming", "Streaming")

_MANY = 48


async def _long(t: Context) -> Streamed:
    return await t.once("streaming.long", lambda: t.stream(max_tokens=_MANY, **t.unending))


@check(
    "streaming.terminal-is-last",
    must="The last chunk of a completion, and only it, has `finish`.",
    advice="yield `finish` in the delta with the last token, once, and end the iterator there",
)
async def terminal_is_last(t: Context) -> None:
    streamed = await t.stream(max_tokens=8, **t.unending)
    finished = [number for number, chunk in enumerate(streamed.chunks) if chunk.finish is not None]
    t.equal(finished, [len(streamed.chunks) - 1], "positions of the chunks with `finish`")


@check(
    "streaming.ends-with-usage",
    must="The terminal chunk says how many tokens the prompt and the completion have.",
    advice="count the tokens that were yielded in all deltas of the sequence, the terminating one included",
)
async def ends_with_usage(t: Context) -> None:
    streamed = await _long(t)
    finish = streamed.finish
    if finish is None:
        raise t.fail(expected="a chunk with `finish`", seen=streamed.chunks)
    t.equal(finish.usage.completion_tokens, len(streamed.token_ids), "usage.completion_tokens")
    t.equal(finish.usage.prompt_tokens, len(await t.engine.tokenize(t.prompt)), "usage.prompt_tokens")


@check(
    "streaming.texts-join",
    must="The texts of the chunks, joined, are the decoding of their token ids, joined.",
    advice="yield only what is new; the SDK decodes tokens, a backend never sends text or tokens twice",
)
async def texts_join(t: Context) -> None:
    streamed = await _long(t)
    ids = streamed.token_ids
    if streamed.finish is not None and streamed.finish.reason == "stop":
        ids = ids[:-1]
    t.equal(streamed.text, await t.engine.detokenize(ids), "joined text")


@check(
    "streaming.tokens-only-once",
    must="No chunk repeats tokens of an earlier one: chunks carry what is new.",
    advice="yield deltas: clear the list of new tokens after each yield; most engines give the whole list each time",
)
async def tokens_only_once(t: Context) -> None:
    streamed = await _long(t)
    total = sum(len(chunk.token_ids) for chunk in streamed.chunks)
    t.expect(total <= _MANY, expected=f"at most {_MANY} tokens in all chunks together", seen=total)
    chunks = [chunk.token_ids for chunk in streamed.chunks]
    cumulative = len(chunks) > 2 and all(
        later[: len(earlier)] == earlier and len(later) > len(earlier) for earlier, later in itertools.pairwise(chunks)
    )
    t.expect(not cumulative, expected="new tokens in each chunk", seen="each chunk begins with the one before it")


@check(
    "streaming.arrives-while-it-is-made",
    must="A stream yields text before the completion is finished.",
    advice="yield each step's tokens as they come; do not collect them, and do not block the event loop meanwhile",
)
async def arrives_while_it_is_made(t: Context) -> None:
    # A fast engine may be ahead of its reader, and its chunks then merge; one that collects never gives an early one.
    for _ in range(5):
        streamed = await t.stream(max_tokens=4 * _MANY, **t.unending)
        if any(chunk.finish is None and chunk.token_ids for chunk in streamed.chunks):
            return
        if len(streamed.token_ids) < 4:
            raise t.skip("the model ended its text at once, and ignore_eos is not declared")
    raise t.fail(expected="a chunk with tokens before the last one, in one of 5 streams", seen="only terminal chunks")


@check(
    "streaming.first-token-is-timed",
    must="The timings of a stream are in order: 0 <= queue <= time_to_first_token <= total.",
    advice="the SDK takes the times; a backend that yields its tokens as they come needs nothing for it",
)
async def first_token_is_timed(t: Context) -> None:
    finish = (await _long(t)).finish
    timings = None if finish is None else finish.timings
    first = None if timings is None else timings.time_to_first_token
    good = timings is not None and first is not None and 0 <= timings.queue <= first <= timings.total
    t.expect(good, expected="0 <= queue <= time_to_first_token <= total", seen=timings)


@check(
    "streaming.choices-have-indices",
    must="With `n` each of the n completions streams under its own index and has one terminal chunk.",
    advice="n is the SDK's: it sends n requests of different ids; keep sequences apart by request.id",
)
async def choices_have_indices(t: Context) -> None:
    streamed = await t.stream(n=3, max_tokens=6, sampling=SamplingParams())
    t.equal(sorted({chunk.index for chunk in streamed.chunks}), [0, 1, 2], "indices of the chunks")
    for index in range(3):
        finished = [number for number, chunk in enumerate(streamed.choice(index)) if chunk.finish is not None]
        last = len(streamed.choice(index)) - 1
        t.equal(finished, [last], f"positions of the chunks with `finish` of completion {index}")


@check(
    "streaming.logprobs-one-a-token",
    must="With `logprobs` each chunk has one entry for each of its tokens, in their order.",
    advice="put as many log-probabilities as tokens into every delta, also the last one",
    needs=("logprobs",),
    tier="extension",
)
async def logprobs_one_a_token(t: Context) -> None:
    streamed = await t.stream(max_tokens=8, logprobs=0, sampling=SamplingParams())
    for number, chunk in enumerate(streamed.chunks):
        ids = [entry.token_id for entry in chunk.logprobs or []]
        t.equal(ids, chunk.token_ids, f"token ids of the log-probabilities of chunk {number}")


@check(
    "streaming.refused-on-entering",
    must="A request that cannot be right is refused when the stream is entered, not while it is read.",
    advice="refuse in Backend.validate, which runs before anything is submitted",
)
async def refused_on_entering(t: Context) -> None:
    with t.refused(InvalidRequest, field="max_tokens"):
        async with t.open(max_tokens=t.engine.info.max_model_len + 1):
            pass


@check(
    "streaming.lazy-until-read",
    must="Entering a stream submits nothing; the first read does.",
    advice="start the request in the iterator's first step, or leave `stream` of the SDK as it is",
    needs=("stats.prompt_tokens",),
)
async def lazy_until_read(t: Context) -> None:
    before = (await t.stats()).prompt_tokens
    async with t.open(max_tokens=4):
        await asyncio.sleep(0.1)
        t.equal(
            (await t.stats()).prompt_tokens, before, "prompt tokens that the engine has begun, before the first read"
        )


@check(
    "streaming.slow-reader-loses-nothing",
    must="A reader that pauses gets every token, in order, perhaps in fewer chunks.",
    advice="use DeltaCollector: it merges what its reader has not fetched, and drops nothing",
)
async def slow_reader_loses_nothing(t: Context) -> None:
    for _ in range(5):
        total: list[int] = []
        finish, paused = None, False
        async with t.open(max_tokens=4 * _MANY, **t.unending) as stream:
            async for chunk in stream:
                total += chunk.token_ids
                finish = chunk.finish or finish
                if finish is None and not paused:
                    await asyncio.sleep(0.2)
                    paused = True
        if finish is None:
            raise t.fail(expected="a terminal chunk", seen="the stream ended without one")
        t.equal(len(total), finish.usage.completion_tokens, "tokens read")
        if finish.reason == "length":
            t.equal(len(total), 4 * _MANY, "tokens read, of a completion that ended with `length`")
        if paused:
            return


@check(
    "streaming.streams-do-not-mix",
    must="Streams that are read at the same time each get the tokens of their own prompt.",
    advice="keep what belongs to a request under its id; never under the order of arrival",
)
async def streams_do_not_mix(t: Context) -> None:
    from anyengine_conformance.context import PROMPTS  # noqa: PLC0415 for this one

    async def read(prompt: str) -> tuple[int, list[int]]:
        streamed = await t.stream(prompt, max_tokens=6, **t.unending)
        finish = streamed.finish
        return (0 if finish is None else finish.usage.prompt_tokens), streamed.token_ids

    found = await together(map(read, PROMPTS))
    for prompt, (prompt_tokens, token_ids) in zip(PROMPTS, found, strict=True):
        t.equal(prompt_tokens, len(await t.engine.tokenize(prompt)), f"prompt tokens of the stream of {prompt!r}")
        t.expect(bool(token_ids), expected=f"tokens for {prompt!r}", seen=token_ids)


@check(
    "streaming.entered-only-once",
    must="A stream is entered once; entering it again is Misuse.",
    advice="leave the SDK's Stream as it is",
)
async def entered_only_once(t: Context) -> None:
    stream = t.open(max_tokens=2)
    async with stream:
        pass
    t.asked("the same stream is entered again")
    with t.refused(Misuse):
        async with stream:
            pass


@check(
    "streaming.no-torn-characters",
    must="A character that needs several tokens comes whole: chunks have as many U+FFFD as the decoding of all tokens.",
    advice="yield token ids and let the SDK decode them; an engine's own streamed text tears characters",
    needs=("sampling.allowed_token_ids", "sampling.seed"),
    tier="extension",
)
async def no_torn_characters(t: Context) -> None:
    pieces = await t.engine.tokenize("é🙂漢字ñ", add_special_tokens=False)
    for seed in range(4):
        sampling = SamplingParams(allowed_token_ids=pieces, seed=seed)
        streamed = await t.stream(max_tokens=32, sampling=sampling, **t.unending)
        ids = streamed.token_ids
        if streamed.finish is not None and streamed.finish.reason == "stop":
            ids = ids[:-1]
        t.equal(
            streamed.text, await t.engine.detokenize(ids), f"text of tokens that are parts of characters, seed {seed}"
        )
