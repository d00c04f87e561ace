"""Every request field that an engine honours itself has the effect that it is said to have."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from anyengine import RequestTimeout, SamplingParams

from anyengine_conformance.check import check, family, variant
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.families._numbers import following

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("knobs", "Knobs")

#: Two sequences run, two more are handed over and wait in the engine.
PAIR = variant("two-sequences", needs=("config.scheduling.max_num_seqs",), scheduling={"max_num_seqs": 2})
CACHING = variant("prefix-caching", needs=("config.kv_cache.prefix_caching",), kv_cache={"prefix_caching": True})
#: Tokens of a prompt that has several blocks of any engine's cache.
_MANY = 400


async def _eos(t: Context) -> int:
    token = min(t.engine.model.eos_token_ids, default=t.engine.info.vocab_size)
    if token >= t.engine.info.vocab_size:
        raise t.skip("the model has no end-of-sequence token that it can draw")
    return token


async def _forced(t: Context, token: int, **options: Any) -> list[int]:
    """The tokens of a completion in which this one is all but certain, wherever it may be drawn."""
    answer = await t.generate(sampling=SamplingParams(logit_bias={token: 100.0}), **options)
    return answer.token_ids


@check(
    "knobs.min-tokens-holds-the-end",
    must="`min_tokens` keeps even an all but certain end-of-sequence token from being drawn too early.",
    advice="mask end-of-sequence tokens after the bias, for the first min_tokens tokens",
    needs=("request.min_tokens", "sampling.logit_bias"),
    tier="extension",
)
async def min_tokens_holds_the_end(t: Context) -> None:
    token = await _eos(t)
    t.equal(await _forced(t, token, max_tokens=9), [token], "token ids without min_tokens")
    held = await _forced(t, token, max_tokens=9, min_tokens=5)
    ends = t.engine.model.eos_token_ids
    early = [other for other in held[:5] if other in ends]
    t.expect(not early, expected="no end-of-sequence token among the first 5", seen=held)
    t.equal((len(held), held[-1]), (6, token), "(number of tokens, the last) with min_tokens=5")


@check(
    "knobs.ignore-eos-changes-the-end",
    must="An all but certain end-of-sequence token ends the completion at once, and with `ignore_eos` not at all.",
    advice="with ignore_eos, end at max_tokens; do not mask the token, it may be drawn",
    needs=("request.ignore_eos", "sampling.logit_bias"),
    tier="extension",
)
async def ignore_eos_changes_the_end(t: Context) -> None:
    token = await _eos(t)
    t.equal(await _forced(t, token, max_tokens=4), [token], "token ids")
    t.equal(await _forced(t, token, max_tokens=4, ignore_eos=True), [token] * 4, "token ids with ignore_eos")


@check(
    "knobs.stop-token-ids-change-the-end",
    must="An all but certain token ends the completion only if it is in `stop_token_ids`.",
    advice="end at every token of request.terminators, and at no other",
    needs=("request.stop_token_ids", "sampling.logit_bias"),
    tier="extension",
)
async def stop_token_ids_change_the_end(t: Context) -> None:
    likely = list(await following(t, await t.engine.tokenize(t.prompt)))
    first, other = [token for token in likely if token not in t.engine.model.eos_token_ids][4:6]
    t.equal(await _forced(t, first, max_tokens=4), [first] * 4, "token ids without stop tokens")
    t.equal(await _forced(t, first, max_tokens=4, stop_token_ids=[other]), [first] * 4, f"token ids with stop {other}")
    both = [other, first]
    t.equal(await _forced(t, first, max_tokens=4, stop_token_ids=both), [first], f"token ids with stops {both}")


async def _finish_order(t: Context, priorities: dict[str, int]) -> list[str]:
    """Two requests take both places, the others wait in the engine; who is done first?"""
    done: list[str] = []

    async def read(name: str, stream: Any) -> None:
        async for _ in stream:
            pass
        done.append(name)

    room = t.engine.info.max_model_len // 2
    async with asyncio.TaskGroup() as tasks:

        async def start(name: str, length: int, priority: int) -> None:
            stream = await t.open(
                PROMPTS[len(name) % 4], max_tokens=length, priority=priority, **t.unending
            ).__aenter__()
            streams.append(stream)
            tasks.create_task(read(name, stream))

        streams: list[Any] = []
        try:
            await start("short", min(room, 64), 0)
            await start("long", min(room, 200), 0)
            for name, priority in priorities.items():
                await start(name, 8, priority)
        except BaseException:
            for stream in streams:
                await stream.__aexit__(None, None, None)
            raise
    for stream in streams:
        await stream.__aexit__(None, None, None)
    return [name for name in done if name in priorities]


@check(
    "knobs.priority-decides-who-is-next",
    must="Of two requests that wait in the engine the one with the lower `priority` begins first.",
    advice="switch the engine's scheduling to priorities (vLLM: scheduling_policy='priority'), and pass the number on",
    needs=("request.priority", "request.ignore_eos"),
    variant=PAIR,
    tier="extension",
)
async def priority_decides_who_is_next(t: Context) -> None:
    t.equal(await _finish_order(t, {"later": 10, "sooner": 0}), ["sooner", "later"], "who of the waiting is done first")
    t.equal(await _finish_order(t, {"sooner": -5, "later": 0}), ["sooner", "later"], "who of the waiting is done first")


async def many_words(t: Context, name: str, tokens: int = _MANY) -> list[int]:
    """Token ids that no other check asks for."""
    rng = random.Random(f"{t.seed}:{name}")  # noqa: S311 nothing secret
    words = " ".join(PROMPTS).split()
    ids = await t.engine.tokenize(" ".join(rng.choice(words) for _ in range(tokens)))
    return ids[: min(tokens, t.engine.info.max_model_len // 2)]


async def cached(t: Context, ids: list[int], **options: Any) -> int:
    """How many tokens of that prompt came from the prefix cache."""
    before = (await t.stats()).kv_cache.prefix_hits
    answer = await t.generate(ids, max_tokens=1, **options)
    if answer.usage.cached_tokens is not None:
        return answer.usage.cached_tokens
    if before is None:
        raise t.skip("the engine reports neither cached_tokens nor prefix_hits, so nobody can tell")
    stats = await t.settled(lambda stats: (stats.kv_cache.prefix_hits or 0) > before, seconds=1.0)
    return (stats.kv_cache.prefix_hits or 0) - before


@check(
    "knobs.cache-salt-parts-the-cache",
    must="A prefix is found in the cache with the same `cache_salt`, and neither with another nor without one.",
    advice="make the salt part of the first block's hash",
    needs=("request.cache_salt", "token_prompts"),
    variant=CACHING,
    tier="extension",
)
async def cache_salt_parts_the_cache(t: Context) -> None:
    ids = await many_words(t, "salt")
    await cached(t, ids, cache_salt="one")
    again = await cached(t, ids, cache_salt="one")
    t.expect(again > 0, expected="cached tokens with the same salt", seen=again)
    t.equal(await cached(t, ids, cache_salt="two"), 0, "cached tokens with another salt")
    t.equal(await cached(t, ids), 0, "cached tokens without a salt")


@check(
    "knobs.prefix-caching-on-reuses",
    must="With `kv_cache.prefix_caching` on, a prompt that was there before is found in the cache.",
    advice="map kv_cache.prefix_caching, and report the tokens found in TokenFinish.cached_tokens",
    needs=("token_prompts",),
    variant=CACHING,
    tier="extension",
)
async def prefix_caching_on_reuses(t: Context) -> None:
    ids = await many_words(t, "on")
    first, second = await cached(t, ids), await cached(t, ids)
    t.equal(first, 0, "cached tokens of a new prompt")
    t.expect(second > 0, expected="cached tokens when it comes again", seen=second)
    longer = await cached(t, [*ids, *ids[:40]])
    t.expect(longer > 0, expected="cached tokens when it is the beginning of another", seen=longer)


@check(
    "knobs.logprobs-on-request",
    must="Log-probabilities are there if asked for, and None if not.",
    advice="honour request.logprobs; 0 asks for the chosen token alone, None for nothing",
    needs=("logprobs",),
    tier="extension",
)
async def logprobs_on_request(t: Context) -> None:
    sampling = SamplingParams()
    t.equal((await t.generate(max_tokens=3, sampling=sampling)).logprobs, None, "logprobs, not asked for")
    answer = await t.generate(max_tokens=3, logprobs=0, sampling=sampling)
    t.equal(len(answer.logprobs or ()), len(answer.token_ids), "entries of logprobs with logprobs=0")
    t.equal(answer.prompt_logprobs, None, "prompt_logprobs, not asked for")


@check(
    "knobs.prompt-logprobs-on-request",
    must="Log-probabilities of the prompt are there if asked for, and None if not.",
    advice="honour request.prompt_logprobs, and send them in the last TokenFinish",
    needs=("prompt_logprobs",),
    tier="extension",
)
async def prompt_logprobs_on_request(t: Context) -> None:
    sampling = SamplingParams()
    t.equal((await t.generate(max_tokens=1, sampling=sampling)).prompt_logprobs, None, "prompt_logprobs, not asked for")
    answer = await t.generate(max_tokens=1, prompt_logprobs=0, sampling=sampling)
    t.equal(len(answer.prompt_logprobs or ()), len(answer.prompt_token_ids), "entries with prompt_logprobs=0")
    t.equal(answer.logprobs, None, "logprobs, not asked for")


@check(
    "knobs.n-gives-so-many",
    must="`n` completions come, each with its index, each complete.",
    advice="the SDK sends n requests; give each what its own id asks for",
)
async def n_gives_so_many(t: Context) -> None:
    for n in (1, 2, 5):
        answer = await t.generate(n=n, max_tokens=6, sampling=SamplingParams())
        t.equal([choice.index for choice in answer.choices], list(range(n)), "indices of the completions")
        short = [choice for choice in answer.choices if choice.finish_reason == "length" and len(choice.token_ids) != 6]
        t.expect(not short, expected="6 tokens where the reason is `length`", seen=short)


@check(
    "knobs.max-tokens-bounds",
    must="A smaller `max_tokens` gives a shorter completion of the same kind.",
    advice="take max_tokens from the request; it is always a number",
    needs=("request.ignore_eos",),
)
async def max_tokens_bounds(t: Context) -> None:
    lengths = [len((await t.generate(max_tokens=most, ignore_eos=True)).token_ids) for most in (1, 4, 9)]
    t.equal(lengths, [1, 4, 9], "tokens with max_tokens 1, 4 and 9")


@check(
    "knobs.timeout-ends-it",
    must="Past `timeout` the request ends with RequestTimeout, and one that is done in time is not touched.",
    advice="the SDK watches the clock and aborts; make Backend.abort work in the middle of a completion",
    needs=("request.ignore_eos",),
)
async def timeout_ends_it(t: Context) -> None:
    t.asked("engine.generate(…, ignore_eos=True, timeout=0.02)")
    try:
        await t.engine.generate(t.prompt, sampling=t.greedy, ignore_eos=True, timeout=0.02)
    except RequestTimeout as error:
        partial = error.partial
        good = partial is None or partial.finish_reason == "abort"
        t.expect(good, expected="partial with finish_reason 'abort', or None", seen=partial)
    else:
        raise t.fail(expected="RequestTimeout: the whole context takes longer than 0.02 s", seen="no error")
    answer = await t.generate(max_tokens=3, ignore_eos=True, timeout=60.0 * t.time_factor)
    t.equal(len(answer.token_ids), 3, "tokens with time enough")
