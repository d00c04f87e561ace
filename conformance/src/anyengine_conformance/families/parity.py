"""Parity: greedy tokens are the model's, judged token by token behind the engine's own tokens.

The method (in bf16 two correct engines part within a few tokens, so texts are not compared): the engine decodes
greedily; the oracle scores the very same tokens in float32; at each step the chosen token is the oracle's best, or less
likely by no more than the near-tie gap of the data type. The gap is measured, in `calibration.json`: the 99.9%
quantile of what transformers in that data type changes in the difference of the two best tokens, times 2, at most 0.25
nats; 0.001 in float32.

Chance: a correct engine fails at a step only if its rounding changes a difference by more than the gap *and* the
difference lies between the gap and that change. On the built-in model in bf16 the gap (0.25) is 5.9 times the root mean
square of what was measured, and 1.5 times its largest value; over the some 3,000 tokens that all checks judge by it,
that is below 1e-5 by the normal tail, within the 0.05 of the budget (5e-5) kept for it. On models that round more
(SmolLM2-135M in bf16: 0.25 is 2.8 times the root mean square; the largest loss in 1,408 steps was 0.22) the cap is what
limits, and the budget is not kept: certify in float32, or with the built-in model. Power: a token that is wrong by more
than the gap is found, always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine import AnyEngineError, SamplingParams

from anyengine_conformance.at_once import together
from anyengine_conformance.check import check, family, variant
from anyengine_conformance.families import _kinds as kinds
from anyengine_conformance.families._forced import Judged, answer_of, forced, forced_all
from anyengine_conformance.teacher_forcing import MEAN_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine import Completion

    from anyengine_conformance.context import Context

family("parity", "Parity")

CHUNKED = variant(
    "chunked-prefill",
    needs=("config.scheduling.max_num_batched_tokens", "config.scheduling.chunked_prefill"),
    scheduling={"max_num_batched_tokens": 64, "max_num_seqs": 16, "chunked_prefill": True},
)

_LENGTH = 24
_TOLERANCE = "near-ties of the data type: calibrated gap, at most 0.25 nats a token; 0.001 in float32"
_ADVICE = (
    "compute what the checkpoint says (compare hidden states layer by layer with transformers in float32), feed the "
    "prompt ids as they are, and take the argmax of the raw logits; `anyengine explain` shows where two engines part"
)
_GREEDY = ("sampling.temperature",)


async def _judge(t: Context, prompts: Sequence[object], name: str, length: int = _LENGTH) -> Judged:
    """Greedy completions of prompts, one at a time."""
    answers = [await t.generate(prompt, max_tokens=length) for prompt in prompts]
    names = [f"behind {name} {number}" for number in range(len(prompts))]
    return await forced_all(t, answers, names, max_tokens=length)


@check(
    "parity.plain-text",
    must="Behind plain English, every greedy token is the model's best, up to near-ties.",
    advice=_ADVICE,
    needs=_GREEDY,
    tolerance=_TOLERANCE,
)
async def plain_text(t: Context) -> None:
    await _judge(t, kinds.PLAIN, "text")


@check(
    "parity.code",
    must="Behind source code, every greedy token is the model's best, up to near-ties.",
    advice="pass the prompt ids on as they are, white space and punctuation too; " + _ADVICE,
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def code(t: Context) -> None:
    await _judge(t, kinds.CODE, "code")


@check(
    "parity.multilingual",
    must="Behind text of several languages and scripts, every greedy token is the model's best, up to near-ties.",
    advice="pass the prompt ids on as they are: rare tokens and single bytes have embeddings too; " + _ADVICE,
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def multilingual(t: Context) -> None:
    await _judge(t, kinds.MULTILINGUAL, "text")


@check(
    "parity.chat",
    must="Behind a chat, every greedy token is the model's best, up to near-ties.",
    advice="the SDK renders the chat template: take request.prompt_token_ids, and add no special tokens",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def chat(t: Context) -> None:
    if not await chats(t):
        raise t.skip("the model has no chat template")
    for number, messages in enumerate(kinds.CHATS):
        answer = await t.generate(messages=messages, max_tokens=_LENGTH)
        await forced(t, answer, what=f"of chat {number}", max_tokens=_LENGTH)


@check(
    "parity.long-prompt",
    must="Behind a prompt of hundreds of tokens, every greedy token is the model's best, up to near-ties.",
    advice="nothing of the prompt may be cut off, and positions go on beyond the first block and beyond the first step",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def long_prompt(t: Context) -> None:
    await _judge(t, [await _long(t)], "the long prompt")


async def chats(t: Context) -> bool:
    """Whether the model has a chat template that takes a plain question."""
    try:
        return bool(await t.engine.apply_chat_template(kinds.CHATS[0]))
    except AnyEngineError:
        return False


async def _long(t: Context) -> str:
    """As much of the long prompt as the context has room for."""
    room = t.engine.info.max_model_len - 2 * _LENGTH
    text = kinds.LONG
    while await t.engine.count_tokens(text) > room and len(text) > 100:
        text = text[: len(text) * 3 // 4]
    return text


@check(
    "parity.token-ids",
    must="Behind a prompt of token ids, taken as they are, every greedy token is the model's best, up to near-ties.",
    advice="feed exactly the ids: no beginning-of-sequence token is added, nothing is decoded and encoded again",
    needs=(*_GREEDY, "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
)
async def token_ids(t: Context) -> None:
    text = await t.engine.tokenize(kinds.PLAIN[1], add_special_tokens=False)
    # Ids that no tokenizer would give in this order: any of the vocabulary, and a text cut in the middle.
    drawn = [t.rng.randrange(t.engine.info.vocab_size) for _ in range(40)]
    ends = t.engine.model.eos_token_ids
    for name, ids in (("drawn", [token for token in drawn if token not in ends]), ("text", text[1:-1])):
        answer = await t.generate(ids, max_tokens=_LENGTH)
        t.equal(answer.prompt_token_ids, ids, f"prompt_token_ids of the {name} ids")
        await forced(t, answer, what=f"behind the {name} ids", max_tokens=_LENGTH)


@check(
    "parity.single-token-prompt",
    must="Behind a prompt of one token, every greedy token is the model's best, up to near-ties.",
    advice="a prompt of one token is computed like any other: position 0, and its logits give the first token",
    needs=(*_GREEDY, "token_prompts"),
    tolerance=_TOLERANCE,
    tier="extension",
)
async def single_token_prompt(t: Context) -> None:
    ids = dict.fromkeys(await t.engine.tokenize(kinds.PLAIN[0], add_special_tokens=False))
    await _judge(t, [[token] for token in list(ids)[:4]], "token", length=12)


@check(
    "parity.prompt-ids",
    must="The prompt ids of a completion are those that `engine.tokenize` gives for the text, of every kind.",
    advice="take request.prompt_token_ids from the SDK; where an engine takes text only, prove that its ids are those",
)
async def prompt_ids(t: Context) -> None:
    texts = (*kinds.PLAIN, *kinds.CODE, *kinds.MULTILINGUAL)
    for text in texts:
        answer = await t.generate(text, max_tokens=1)
        wanted = await t.engine.tokenize(text)
        t.equal(answer.prompt_token_ids, wanted, f"prompt_token_ids of {text!r}")
        t.equal(answer.usage.prompt_tokens, len(wanted), f"usage.prompt_tokens of {text!r}")


@check(
    "parity.ends-where-the-model-ends",
    must="A greedy completion ends with the end-of-sequence token where the model prefers that, and nowhere else.",
    advice="end at each of request.eos_token_ids; do not ban, skip or add them",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    deadline=60,
    tier="extension",
)
async def ends_where_the_model_ends(t: Context) -> None:
    length = min(192, t.engine.info.max_model_len // 2)
    answers: list[Completion] = [await t.generate(text, max_tokens=length) for text in kinds.ENDINGS]
    if await chats(t):
        answers.append(await t.generate(messages=kinds.CHATS[0], max_tokens=length))
    await forced_all(t, answers, max_tokens=length)
    if not any(answer.finish_reason == "stop" for answer in answers):
        raise t.skip(f"the model ends none of {len(answers)} texts within {length} tokens")


@check(
    "parity.mean-error",
    must="The log-probabilities of greedy tokens are off by at most 0.1 nats on average (float32: 0.001).",
    advice="give log-probabilities of the raw logits in float32: log_softmax before temperature, penalties and bias",
    needs=(*_GREEDY, "logprobs"),
    tolerance="mean absolute error: float32 0.001, float16 0.05, bfloat16 0.1 nats",
    tier="extension",
)
async def mean_error(t: Context) -> None:
    # Greedy without anything else is neutral but for the temperature; where that is too much, so is the level.
    if t.capabilities.logprobs == "neutral-only":
        raise t.skip("log-probabilities are declared for neutral sampling only; the family `logprobs` holds those")
    prompts = (*kinds.PLAIN[:2], kinds.CODE[0], kinds.MULTILINGUAL[0])
    answers = [await t.generate(prompt, max_tokens=_LENGTH, logprobs=0) for prompt in prompts]
    judged = await forced_all(t, answers)
    error = sum(judged.errors) / max(1, len(judged.errors))
    most = t.tolerance(MEAN_ERROR.get(t.engine.info.dtype or "", max(MEAN_ERROR.values())))
    t.expect(
        bool(judged.errors) and error <= most,
        expected=f"a mean error of at most {most:g} nats over {judged.steps} tokens, {t.dtype}",
        seen=f"{error:.4f} over {len(judged.errors)}, at most {max(judged.errors, default=0):.4f}",
    )


@check(
    "parity.stop-string",
    must="With a stop string the tokens are the model's as without, up to the one that completes the string.",
    advice="stop strings are the SDK's; a backend goes on with the same tokens until it is aborted",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def stop_string(t: Context) -> None:
    for prompt in kinds.PLAIN[:2]:
        plain = await t.generate(prompt, max_tokens=_LENGTH, **t.unending)
        half = await t.engine.detokenize(plain.token_ids[: len(plain.token_ids) // 2])
        stop = plain.text[len(half) : len(half) + 3]
        if len(stop) < 3 or "\ufffd" in stop:
            continue
        answer = await t.generate(prompt, max_tokens=_LENGTH, stop=[stop], **t.unending)
        ends = () if t.unending else None
        await forced(t, answer, what=f"with stop {stop!r}", ends=ends)
        whole, before = [await t.engine.detokenize(answer.token_ids[:end]) for end in (None, -1)]
        found = (answer.finish_reason, stop in whole, stop in before)
        t.expect(
            found == ("stop", True, False) or (answer.finish_reason != "stop" and stop not in whole),
            expected=f"an end at the token that completes {stop!r}",
            seen=f"finish_reason {answer.finish_reason}, tokens that decode to {whole!r}",
        )


@check(
    "parity.n-sequences",
    must="Each of the `n` greedy completions of a request consists of the model's best tokens, up to near-ties.",
    advice="each of the n is a request of its own with the same prompt ids; the blocks that they share are read-only",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def n_sequences(t: Context) -> None:
    answer = await t.generate(n=5, max_tokens=_LENGTH)
    t.equal(len(answer.choices), 5, "completions for n=5")
    await forced_all(t, answer.choices, [f"of completion {n}" for n in range(5)], max_tokens=_LENGTH)


@check(
    "parity.cached-prefix",
    must="Behind a prefix that is in the cache, every greedy token is the model's best, up to near-ties.",
    advice="look blocks up by all the tokens before their end (and the salt), and never write into a shared one",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
)
async def cached_prefix(t: Context) -> None:
    # The same prompt again, one that shares its beginning, and one that differs in its first token only.
    text = await _long(t)
    prompts = [text, text, text[: len(text) // 2] + " Then", "So " + text[: len(text) // 2], text]
    await _judge(t, prompts, "prompt (the same prefix again)", length=12)


@check(
    "parity.chunked-prompt",
    must="Where a long prompt is computed in pieces, beside others, every greedy token is the model's best.",
    advice="the pieces of a prompt attend to all pieces before them; only the last piece's last logits give a token",
    needs=_GREEDY,
    tolerance=_TOLERANCE,
    tier="extension",
    variant=CHUNKED,
    deadline=60,
)
async def chunked_prompt(t: Context) -> None:
    text = await _long(t)
    prompts = [text, *kinds.PLAIN[:3], "And " + text, *kinds.CODE[:2]]
    t.asked(f"{len(prompts)} prompts at once, two of them of {len(text)} characters")
    answers = await together(
        answer_of(t, prompt, max_tokens=16, sampling=SamplingParams(temperature=0)) for prompt in prompts
    )
    await forced_all(t, answers, max_tokens=16)
