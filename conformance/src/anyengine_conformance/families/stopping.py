"""Where a completion ends: length, stop strings, stop tokens, end-of-sequence tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine import SamplingParams
from hypothesis import strategies as st

from anyengine_conformance.check import check, family, variant
from anyengine_conformance.families import _kinds as kinds
from anyengine_conformance.families.parity import chats

if TYPE_CHECKING:
    from anyengine import Completion

    from anyengine_conformance.context import Context

family("stopping", "Stopping")

SMALL = variant("small-context", needs=("config.max_model_len",), max_model_len=128)

#: Every English text soon has one of these.
_COMMON = (" ", "e", "a", "t", "o")
_ROOM = 48


async def _letters(t: Context) -> tuple[str, ...]:
    """Characters that the model writes, but not at once."""
    plain = await t.once("stopping.plain", lambda: t.generate(max_tokens=_ROOM, **t.unending))
    begun = await t.engine.detokenize(plain.token_ids[:4])
    later = [letter for letter in dict.fromkeys(plain.text) if letter not in begun and letter != "\ufffd"]
    return tuple(later[:4]) or _COMMON


async def _stopped(t: Context, **options: Any) -> Completion:
    """A completion that one of the stop strings ended."""
    stop = options.pop("stop", None) or await _letters(t)
    answer = await t.generate(**{"stop": stop, "max_tokens": _ROOM, **t.unending, **options})
    if answer.finish_reason != "stop":
        hit = [text for text in stop if text in answer.text]
        t.expect(
            not hit, expected=f"an end at the first of {stop}", seen=f"{hit} in the text, and no end: {answer.text!r}"
        )
        raise t.skip("the model wrote none of the letters of its own earlier text")
    return answer


@check(
    "stopping.length-is-exact",
    must="A completion that ends with `length` has exactly `max_tokens` tokens, and `stop_reason` None.",
    advice="count the tokens that were yielded, and end the sequence in the step that reaches max_tokens",
    needs=("request.ignore_eos",),
)
async def length_is_exact(t: Context) -> None:
    for wanted in (1, 7, 33):
        answer = await t.generate(max_tokens=wanted, ignore_eos=True)
        t.equal(len(answer.token_ids), wanted, "number of tokens")
        t.equal((answer.finish_reason, answer.stop_reason), ("length", None), "(finish_reason, stop_reason)")


@check(
    "stopping.never-beyond-max-tokens",
    must="No completion has more than `max_tokens` tokens.",
    advice="discard what the engine ran ahead with: speculation and asynchronous scheduling overshoot",
)
async def never_beyond_max_tokens(t: Context) -> None:
    for wanted in (1, 2, 5, 16):
        answer = await t.generate(max_tokens=wanted, sampling=SamplingParams())
        t.expect(len(answer.token_ids) <= wanted, expected=f"at most {wanted} tokens", seen=len(answer.token_ids))


@check(
    "stopping.string-ends-the-text",
    must="The text ends before the stop string that ended it, and contains none of the stop strings.",
    advice="stop strings are the SDK's; a backend yields token ids until it is aborted",
)
async def string_ends_the_text(t: Context) -> None:
    answer, stops = await _stopped(t), await _letters(t)
    t.expect(answer.stop_reason in stops, expected=f"stop_reason one of {stops}", seen=answer.stop_reason)
    found = [text for text in stops if text in answer.text]
    t.expect(not found, expected="no stop string in the text", seen=f"{found} in {answer.text!r}")


@check(
    "stopping.tokens-end-with-the-stop",
    must="`token_ids` end with the token that completed the stop string, and go no further.",
    advice="yield tokens as they come; the SDK discards what comes after the one that completed the stop string",
)
async def tokens_end_with_the_stop(t: Context) -> None:
    answer = await _stopped(t)
    whole = await t.engine.detokenize(answer.token_ids)
    before = await t.engine.detokenize(answer.token_ids[:-1])
    stop = str(answer.stop_reason)
    t.expect(stop in whole, expected=f"{stop!r} in the decoding of all tokens", seen=whole)
    t.expect(stop not in before, expected=f"no {stop!r} in the decoding of all tokens but the last", seen=before)


@check(
    "stopping.include-stop-keeps-it",
    must="With `include_stop` the text ends with the stop string.",
    advice="stop strings are the SDK's; leave include_stop to it",
)
async def include_stop_keeps_it(t: Context) -> None:
    answer = await _stopped(t, include_stop=True)
    stop = str(answer.stop_reason)
    t.expect(answer.text.endswith(stop), expected=f"a text that ends with {stop!r}", seen=answer.text)
    t.equal(sum(answer.text.count(text) for text in await _letters(t)), 1, "stop strings in the text")


@check(
    "stopping.first-to-end-wins",
    must="Of several stop strings the one that is completed first ends the text, and is `stop_reason`.",
    advice="stop strings are the SDK's: it finds the occurrence that ends first, and of those the longest",
)
async def first_to_end_wins(t: Context) -> None:
    # The first character that the model writes is also the end of longer strings that never come to be.
    stops = ("qqqqqq", *await _letters(t), "never written")
    answer = await _stopped(t, stop=stops)
    whole = await t.engine.detokenize(answer.token_ids)
    ends = {text: whole.find(text) + len(text) for text in stops if text in whole}
    first = min(ends.values(), default=0)
    t.expect(
        ends.get(str(answer.stop_reason)) == first,
        expected=f"the one that ends first in {whole!r}",
        seen=answer.stop_reason,
    )


@check(
    "stopping.across-tokens",
    must="A stop string that spans several tokens is found, and its first part is no part of the text.",
    advice="stop strings are the SDK's; do not map them to the engine's own, which often know single tokens only",
)
async def across_tokens(t: Context) -> None:
    plain = await t.once("stopping.plain", lambda: t.generate(max_tokens=_ROOM, **t.unending))
    if len(plain.text) < 12:
        raise t.skip("the model ended its text at once")

    # Where greedy output varies from run to run the string may not come; then nothing of it may be missing either.
    async def holds(place: int) -> None:
        start = place % (len(plain.text) - 8)
        stop = plain.text[start : start + 7]
        answer = await t.generate(max_tokens=_ROOM, stop=[stop], **t.unending)
        whole = await t.engine.detokenize(answer.token_ids)
        if answer.finish_reason == "stop" and answer.stop_reason == stop:
            t.equal(answer.text, whole[: whole.find(stop)], f"text before the stop string {stop!r}")
        else:
            t.expect(stop not in whole, expected=f"an end at {stop!r}", seen=whole)

    await t.given(st.integers(0, len(plain.text)), holds, examples=8)


@check(
    "stopping.stream-holds-back-the-stop",
    must="No chunk shows a part of the stop string that ends the text.",
    advice="stop strings are the SDK's; do not send text of your own",
)
async def stream_holds_back_the_stop(t: Context) -> None:
    stops = await _letters(t)
    streamed = await t.stream(stop=stops, max_tokens=_ROOM, **t.unending)
    found = [text for text in stops if text in streamed.text]
    t.expect(not found, expected="no stop string in the chunks", seen=f"{found} in {streamed.text!r}")


@check(
    "stopping.stop-token-ends-it",
    must="A token of `stop_token_ids` ends the completion, is its last token and its `stop_reason`, and has no text.",
    advice="pass request.terminators on as token ids, and yield the terminating token too",
    needs=("request.stop_token_ids",),
)
async def stop_token_ends_it(t: Context) -> None:
    plain = await t.once("stopping.plain", lambda: t.generate(max_tokens=_ROOM, **t.unending))
    # All tokens of a whole text: whatever way it takes this time, it meets one of them at once.
    stops = sorted(set(plain.token_ids))
    answer = await t.generate(stop_token_ids=stops, max_tokens=_ROOM, **t.unending)
    if answer.finish_reason != "stop":
        t.expect(not set(answer.token_ids) & set(stops), expected="an end at a stop token", seen=answer.token_ids)
        raise t.skip("the model wrote none of the tokens of its own earlier text")
    t.equal(answer.stop_reason, answer.token_ids[-1], "stop_reason")
    t.expect(answer.stop_reason in stops, expected="one of stop_token_ids", seen=answer.stop_reason)
    early = [token for token in answer.token_ids[:-1] if token in stops]
    t.expect(not early, expected="no stop token before the last", seen=early)
    t.equal(answer.text, await t.engine.detokenize(answer.token_ids[:-1]), "text without the stop token")


@check(
    "stopping.eos-ends-it",
    must="Each end-of-sequence token of the model ends the completion; `stop_reason` is its id, and it has no text.",
    advice="request.eos_token_ids has all of them, from config, generation config and tokenizer: pass all on",
    needs=("sampling.allowed_token_ids",),
)
async def eos_ends_it(t: Context) -> None:
    for token in sorted(t.engine.model.eos_token_ids):
        if token >= t.engine.info.vocab_size:
            continue
        answer = await t.generate(max_tokens=4, sampling=SamplingParams(allowed_token_ids=[token]))
        t.equal(answer.token_ids, [token], "token ids, where only this end-of-sequence token can be drawn")
        t.equal(
            (answer.finish_reason, answer.stop_reason, answer.text),
            ("stop", token, ""),
            "(finish_reason, stop_reason, text)",
        )


async def _goes_past_its_own_end(t: Context) -> None:
    """For engines in which no token can be forced: where the model ended by itself, it goes on."""
    room = min(128, t.engine.info.max_model_len // 2)
    asked: list[dict[str, Any]] = [{"prompt": text} for text in kinds.ENDINGS]
    if await chats(t):
        asked.insert(0, {"prompt": None, "messages": kinds.SHORT_CHAT})
    for options in asked:
        plain = await t.generate(**options, max_tokens=room)
        if plain.finish_reason == "stop":
            most = len(plain.token_ids) + 8
            answer = await t.generate(**options, max_tokens=most, ignore_eos=True)
            seen = (len(answer.token_ids), answer.finish_reason)
            t.equal(seen, (most, "length"), "(number of tokens, finish_reason) of a text that ended before")
            return
    raise t.skip(f"no token can be forced, and the model ends none of {len(asked)} texts within {room} tokens")


@check(
    "stopping.ignore-eos-goes-on",
    must="With `ignore_eos` end-of-sequence tokens do not end the completion; stop tokens still do.",
    advice="with ignore_eos request.eos_token_ids is empty; end at request.terminators and max_tokens only",
    needs=("request.ignore_eos",),
    deadline=60,
)
async def ignore_eos_goes_on(t: Context) -> None:
    token = min(t.engine.model.eos_token_ids, default=None)
    if token is None or token >= t.engine.info.vocab_size:
        raise t.skip("the model has no end-of-sequence token")
    if "allowed_token_ids" not in t.capabilities.sampling:
        await _goes_past_its_own_end(t)
        return
    only = SamplingParams(allowed_token_ids=[token])
    answer = await t.generate(max_tokens=5, ignore_eos=True, sampling=only)
    t.equal((answer.token_ids, answer.finish_reason), ([token] * 5, "length"), "(token_ids, finish_reason)")
    if "stop_token_ids" in t.capabilities.request:
        answer = await t.generate(max_tokens=5, ignore_eos=True, stop_token_ids=[token], sampling=only)
        t.equal(
            (answer.token_ids, answer.stop_reason), ([token], token), "(token_ids, stop_reason) with it as stop token"
        )


@check(
    "stopping.min-tokens-holds-strings",
    must="A stop string counts only if it is completed after the first `min_tokens` tokens.",
    advice="stop strings are the SDK's; give min_tokens to the engine for its terminators only",
    needs=("request.min_tokens",),
)
async def min_tokens_holds_strings(t: Context) -> None:
    answer = await _stopped(t, min_tokens=9, stop=_COMMON)
    t.expect(len(answer.token_ids) > 9, expected="more than 9 tokens", seen=len(answer.token_ids))


@check(
    "stopping.min-tokens-holds-tokens",
    must="No end-of-sequence or stop token is drawn before `min_tokens` tokens are there.",
    advice="mask request.terminators until min_tokens tokens were generated; the prompt does not count",
    needs=("request.min_tokens", "request.stop_token_ids"),
)
async def min_tokens_holds_tokens(t: Context) -> None:
    plain = await t.once("stopping.plain", lambda: t.generate(max_tokens=_ROOM, **t.unending))
    stops = sorted({*plain.token_ids[:3], *t.engine.model.eos_token_ids} & set(range(t.engine.info.vocab_size)))
    for least in (1, 6):
        answer = await t.generate(stop_token_ids=stops, min_tokens=least, max_tokens=_ROOM)
        early = [token for token in answer.token_ids[:least] if token in stops]
        t.expect(not early, expected=f"none of {stops} among the first {least} tokens", seen=answer.token_ids)
        t.expect(len(answer.token_ids) > least, expected=f"more than {least} tokens", seen=len(answer.token_ids))


@check(
    "stopping.default-fills-the-context",
    must="Without `max_tokens` a completion may fill the rest of the context, and not one token more.",
    advice="max_tokens arrives as a number that fits; do not lower it, and do not count the prompt twice",
    variant=SMALL,
    needs=("request.ignore_eos",),
)
async def default_fills_the_context(t: Context) -> None:
    answer = await t.generate(ignore_eos=True)
    t.equal(answer.usage.total_tokens, t.engine.info.max_model_len, "prompt and completion tokens")
    t.equal(answer.finish_reason, "length", "finish_reason")


@check(
    "stopping.context-is-as-asked",
    must="With `max_model_len` the loaded engine says that context, and refuses what does not fit into it.",
    advice="map config.max_model_len, and report it in BackendInfo.max_model_len",
    variant=SMALL,
)
async def context_is_as_asked(t: Context) -> None:
    t.equal(t.engine.info.max_model_len, t.engine.config.max_model_len, "engine.info.max_model_len")
    room = t.engine.info.max_model_len - len(await t.engine.tokenize(t.prompt))
    answer = await t.generate(max_tokens=room)
    t.expect(len(answer.token_ids) <= room, expected=f"at most {room} tokens", seen=len(answer.token_ids))
