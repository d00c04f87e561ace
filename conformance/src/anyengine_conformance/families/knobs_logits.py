"""Sampling fields that change logits: penalties, bias, what is allowed, bad words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine import SamplingParams

from anyengine_conformance.check import check, family
from anyengine_conformance.families._numbers import banned, following, greedy_by, open_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine_conformance.context import Context

family("knobs", "Knobs")

_LENGTH = 24


@check(
    "knobs.repetition-penalty-discourages",
    must="A large `repetition_penalty` keeps tokens of the prompt and of the completion from coming again.",
    advice="divide positive and multiply negative logits of the tokens of the prompt and of the completion so far",
    needs=("sampling.repetition_penalty",),
    tier="extension",
)
async def repetition_penalty_discourages(t: Context) -> None:
    prompt = f"{t.prompt} saw the dog and the cat and the sea. She said that the"
    plain = await t.generate(prompt, max_tokens=_LENGTH, **t.unending)
    before = plain.prompt_token_ids
    if not set(plain.token_ids) & set(before):
        raise t.skip("the model repeats nothing of this prompt by itself")
    strong = t.greedy.model_copy(update={"repetition_penalty": 10_000.0})
    answer = await t.generate(prompt, max_tokens=_LENGTH, sampling=strong, **t.unending)
    # A token that the prompt did not have, and that then comes once more, was not counted in the completion.
    ids = answer.token_ids
    again = [token for place, token in enumerate(ids) if token in before or token in ids[:place]]
    t.expect(not again, expected="no token of the prompt, and none twice", seen=f"{again} again, in {ids}")


@check(
    "knobs.repetition-penalty-below-one-encourages",
    must="A `repetition_penalty` far below 1 keeps the completion to tokens that were there before.",
    advice="the same formula holds below 1, where it favours what was there; do not raise it to 1",
    needs=("sampling.repetition_penalty",),
    tier="extension",
)
async def repetition_penalty_below_one_encourages(t: Context) -> None:
    plain = await t.generate(max_tokens=_LENGTH, **t.unending)
    if not set(plain.token_ids) - set(plain.prompt_token_ids):
        raise t.skip("the model writes nothing but tokens of this prompt by itself")
    weak = t.greedy.model_copy(update={"repetition_penalty": 0.02})
    answer = await t.generate(max_tokens=_LENGTH, sampling=weak, **t.unending)
    new = [token for token in answer.token_ids if token not in answer.prompt_token_ids]
    t.expect(not new, expected="only tokens of the prompt", seen=f"{new} too, in {answer.token_ids}")


async def _penalised(t: Context, *, presence: float = 0.0, frequency: float = 0.0) -> None:
    """Greedy tokens follow the formula; and somewhere it makes a difference."""

    def adjust(value: float, token: int, before: Sequence[int]) -> float:
        count = before.count(token)
        return value - presence * (count > 0) - frequency * count

    rule = f"less {presence:g} if it is in the completion, less {frequency:g} for each time"
    sampling = t.greedy.model_copy(update={"presence_penalty": presence, "frequency_penalty": frequency})
    decisive = 0
    for prompt in (t.prompt, "the the the the the the the the", "One, two, one, two, one, two, one, two, one,"):
        answer = await t.generate(prompt, max_tokens=2 * _LENGTH, sampling=sampling, **t.unending)
        decisive += await greedy_by(t, answer, adjust, rule)
    if not decisive:
        raise t.skip("nowhere did the penalty change this model's choice")


@check(
    "knobs.presence-penalty-counts-once",
    must="`presence_penalty` is subtracted once from the logits of tokens of the completion, not of the prompt.",
    advice="count the completion only; engines that count the prompt too need its tokens left out",
    needs=("sampling.presence_penalty", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def presence_penalty_counts_once(t: Context) -> None:
    await _penalised(t, presence=2.0)


@check(
    "knobs.negative-presence-penalty-encourages",
    must="A negative `presence_penalty` is added, once, to the logits of tokens of the completion.",
    advice="take the sign as it is, down to -2",
    needs=("sampling.presence_penalty", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def negative_presence_penalty_encourages(t: Context) -> None:
    await _penalised(t, presence=-2.0)


@check(
    "knobs.frequency-penalty-counts-each",
    must="`frequency_penalty` is subtracted for each occurrence in the completion, not in the prompt.",
    advice="multiply by the count in the completion; do not divide by its length",
    needs=("sampling.frequency_penalty", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def frequency_penalty_counts_each(t: Context) -> None:
    await _penalised(t, frequency=1.0)


@check(
    "knobs.logit-bias-forces",
    must="A `logit_bias` of 100 makes a token certain.",
    advice="add the bias to the logits of those ids, before temperature",
    needs=("sampling.logit_bias",),
    tier="extension",
)
async def logit_bias_forces(t: Context) -> None:
    _, top = await open_prompt(t)
    for token in [token for token in list(top)[3:40] if token not in t.engine.model.eos_token_ids][:3]:
        answer = await t.generate(max_tokens=4, sampling=SamplingParams(logit_bias={token: 100.0}))
        t.equal(answer.token_ids, [token] * 4, f"token ids with a bias of 100 on {token}")


@check(
    "knobs.logit-bias-bans",
    must="A `logit_bias` of -100 keeps a token from being drawn, and leaves the others as they are.",
    advice="add the bias with its sign; keep the ids as numbers (JSON makes text of them)",
    needs=("sampling.logit_bias", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def logit_bias_bans(t: Context) -> None:
    plain = await t.generate(max_tokens=_LENGTH, **t.unending)
    ban = sorted(set(plain.token_ids))[::2]
    sampling = t.greedy.model_copy(update={"logit_bias": dict.fromkeys(ban, -100.0)})
    answer = await t.generate(max_tokens=_LENGTH, sampling=sampling, **t.unending)
    found = sorted(set(answer.token_ids) & set(ban))
    t.expect(not found, expected=f"none of {ban}", seen=f"{found} in {answer.token_ids}")
    await greedy_by(t, answer, banned([[token] for token in ban]), f"without {ban}")


@check(
    "knobs.allowed-token-ids-only",
    must="With `allowed_token_ids` no other token is drawn, and the most likely of them is chosen greedily.",
    advice="set the logits of all other tokens to minus infinity",
    needs=("sampling.allowed_token_ids",),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def allowed_token_ids_only(t: Context) -> None:
    ids = await t.engine.tokenize(t.prompt)
    allowed = list(await following(t, ids))[2:12]
    for sampling in (
        SamplingParams(allowed_token_ids=allowed),
        t.greedy.model_copy(update={"allowed_token_ids": allowed}),
    ):
        answer = await t.generate(max_tokens=_LENGTH, sampling=sampling)
        outside = [token for token in answer.token_ids if token not in allowed]
        t.expect(not outside, expected=f"only tokens of {allowed}", seen=f"{outside} in {answer.token_ids}")
        if sampling.greedy:
            others = [[token] for token in range(t.engine.info.vocab_size) if token not in allowed]
            await greedy_by(t, answer, banned(others), "of the allowed")


async def _spellings(t: Context, word: str) -> list[list[int]]:
    """A bad word as the tokenizer spells it at the start of a text and after a space."""
    return [await t.engine.tokenize(text, add_special_tokens=False) for text in (word, f" {word}")]


async def _bad(t: Context, word: str) -> None:
    sampling = t.greedy.model_copy(update={"bad_words": (word,)})
    answer = await t.generate(max_tokens=_LENGTH, sampling=sampling, **t.unending)
    spellings = await _spellings(t, word)
    ids = answer.token_ids
    found = [word for word in spellings for place in range(len(ids)) if ids[place : place + len(word)] == word]
    t.expect(not found, expected=f"not the tokens {spellings} of {word!r}", seen=f"{found} in {ids}")
    await greedy_by(t, answer, banned(spellings), f"where {word!r} may not be ended")


@check(
    "knobs.bad-words-of-one-token",
    must="A word of `bad_words` that is one token does not come, at the start or after a space.",
    advice="use request.bad_word_ids: the SDK has spelt the words already",
    needs=("sampling.bad_words", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def bad_words_of_one_token(t: Context) -> None:
    plain = await t.generate(max_tokens=_LENGTH, **t.unending)
    for token in plain.token_ids:
        word = (await t.engine.detokenize([token])).strip()
        if word.isalpha() and [token] in await _spellings(t, word):
            return await _bad(t, word)
    raise t.skip("the model wrote no word of a single token")


@check(
    "knobs.bad-words-of-several-tokens",
    must="A word of `bad_words` that is several tokens is not ended; its first tokens may come.",
    advice="ban the last token of a sequence of request.bad_word_ids where the others precede, and only there",
    needs=("sampling.bad_words", "sampling.temperature"),
    tolerance="near-ties of the data type",
    tier="extension",
)
async def bad_words_of_several_tokens(t: Context) -> None:
    plain = await t.generate(max_tokens=_LENGTH, **t.unending)
    for length in (3, 2):
        for place in range(2, len(plain.token_ids) - 4):
            piece = plain.token_ids[place : place + length]
            word = (await t.engine.detokenize(piece)).strip()
            spellings = await _spellings(t, word) if word else []
            if piece in spellings:
                return await _bad(t, word)
    raise t.skip("no run of the model's own tokens is spelt as the tokenizer spells its text")
