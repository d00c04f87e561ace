"""Tokens and text: the same ids reach every engine, and the text follows from the ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine import SamplingParams
from hypothesis import strategies as st

from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from anyengine_conformance.context import Context

family("tokens", "Tokens and text")

_TEXTS = (
    "Hello, world!",
    "  two spaces, a\ttab\nand a new line\n\n",
    "café, naïve, Zoë, 漢字, עברית, 🙂👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # code",
    "a" * 200,
    "\u0000\u200b\ufeff",
)
_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def _tokenizer(t: Context) -> Tokenizer:
    """The checkpoint's own, read beside the SDK."""
    from tokenizers import Tokenizer  # noqa: PLC0415 heavy

    return Tokenizer.from_file(str(t.engine.model.tokenizer_path / "tokenizer.json"))


@check(
    "tokens.prompt-ids-are-the-tokenizers",
    must="`prompt_token_ids` are what the checkpoint's tokenizer.json makes of the prompt.",
    advice="take prompt_token_ids as they come; never tokenise in the engine, and add no special tokens",
)
async def prompt_ids_are_the_tokenizers(t: Context) -> None:
    tokenizer = _tokenizer(t)
    for text in (*PROMPTS, *_TEXTS[:4]):
        answer = await t.generate(text, max_tokens=1)
        t.equal(answer.prompt_token_ids, tokenizer.encode(text).ids, f"prompt_token_ids of {text!r}")


@check(
    "tokens.tokenize-is-the-tokenizers",
    must="`engine.tokenize` gives what the checkpoint's tokenizer.json makes of any text.",
    advice="leave tokenising to the SDK",
)
async def tokenize_is_the_tokenizers(t: Context) -> None:
    tokenizer = _tokenizer(t)

    async def holds(text: str) -> None:
        t.equal(await t.engine.tokenize(text), tokenizer.encode(text).ids, f"ids of {text!r}")
        bare = await t.engine.tokenize(text, add_special_tokens=False)
        t.equal(bare, tokenizer.encode(text, add_special_tokens=False).ids, f"ids of {text!r} without special tokens")

    for text in _TEXTS:
        await holds(text)
    await t.given(_TEXT, holds, examples=40)


@check(
    "tokens.detokenize-is-the-tokenizers",
    must="`engine.detokenize` gives what the checkpoint's tokenizer.json makes of any token ids.",
    advice="leave detokenising to the SDK",
)
async def detokenize_is_the_tokenizers(t: Context) -> None:
    tokenizer = _tokenizer(t)
    size = min(tokenizer.get_vocab_size(), t.engine.info.vocab_size)

    async def holds(ids: list[int]) -> None:
        for skip in (True, False):
            expected = tokenizer.decode(ids, skip_special_tokens=skip)
            t.equal(await t.engine.detokenize(ids, skip_special_tokens=skip), expected, f"text of {ids}, skip={skip}")

    for text in (*_TEXTS, " one space"):
        await holds(tokenizer.encode(text, add_special_tokens=False).ids)
    await t.given(st.lists(st.integers(0, size - 1), max_size=20), holds, examples=40)


@check(
    "tokens.text-is-the-decoding",
    must="`text` is the decoding of `token_ids`, without the token that ended it.",
    advice="yield the ids that the model drew, all of them, in order; the SDK makes the text of them",
)
async def text_is_the_decoding(t: Context) -> None:
    for prompt in PROMPTS:
        answer = await t.generate(prompt, max_tokens=24, sampling=SamplingParams())
        ids = answer.token_ids[:-1] if answer.finish_reason == "stop" else answer.token_ids
        t.equal(answer.text, await t.engine.detokenize(ids), "text")


@check(
    "tokens.special-tokens-on-request",
    must="Special tokens are in `token_ids`, and in `text` only with skip_special_tokens=False.",
    advice="yield special tokens like others; leaving them out of the text is the SDK's",
    needs=("sampling.allowed_token_ids", "request.ignore_eos"),
)
async def special_tokens_on_request(t: Context) -> None:
    token = min(t.engine.model.eos_token_ids, default=t.engine.info.vocab_size)
    if token >= t.engine.info.vocab_size:
        raise t.skip("the model has no end-of-sequence token to force")
    spelling = await t.engine.detokenize([token], skip_special_tokens=False)
    only = SamplingParams(allowed_token_ids=[token])
    for skip, expected in ((True, await t.engine.detokenize([token] * 3)), (False, spelling * 3)):
        answer = await t.generate(max_tokens=3, ignore_eos=True, sampling=only, skip_special_tokens=skip)
        t.equal(
            (answer.token_ids, answer.text), ([token] * 3, expected), f"(token_ids, text), skip_special_tokens={skip}"
        )


@check(
    "tokens.usage-counts-them",
    must="`usage` counts the ids of prompt and completion, the terminating one included.",
    advice="count what was yielded; engines leave out the end-of-sequence token, or count what they ran ahead with",
)
async def usage_counts_them(t: Context) -> None:
    for prompt in PROMPTS:
        answer = await t.generate(prompt, max_tokens=12, sampling=SamplingParams())
        t.equal(answer.usage.completion_tokens, len(answer.token_ids), "usage.completion_tokens")
        t.equal(answer.usage.prompt_tokens, len(answer.prompt_token_ids), "usage.prompt_tokens")


@check(
    "tokens.cached-tokens-are-of-the-prompt",
    must="`usage.cached_tokens` is None, or between 0 and the tokens of the prompt.",
    advice="report in TokenFinish.cached_tokens how many tokens of this prompt came from the cache, None if unknown",
)
async def cached_tokens_are_of_the_prompt(t: Context) -> None:
    for _ in range(2):
        answer = await t.generate(" ".join(PROMPTS), max_tokens=1)
        cached = answer.usage.cached_tokens
        good = cached is None or 0 <= cached <= answer.usage.prompt_tokens
        t.expect(good, expected=f"None, or 0 to {answer.usage.prompt_tokens}", seen=cached)


@check(
    "tokens.ids-are-taken-as-they-are",
    must="A prompt of token ids reaches the engine as it is: nothing is added or left out.",
    advice="pass prompt_token_ids on as ids; switch the engine's own tokeniser and templates off",
    needs=("token_prompts",),
)
async def ids_are_taken_as_they_are(t: Context) -> None:
    ids = await t.engine.tokenize(t.prompt, add_special_tokens=False)
    for prompt in (ids, ids[:1], [*ids, *ids]):
        answer = await t.generate(prompt, max_tokens=1)
        t.equal(answer.prompt_token_ids, prompt, "prompt_token_ids")
        t.equal(answer.usage.prompt_tokens, len(prompt), "usage.prompt_tokens")


@check(
    "tokens.count-tokens-agrees",
    must="`count_tokens` is what `usage.prompt_tokens` then says.",
    advice="leave counting to the SDK, and report no prompt length of the engine's own",
)
async def count_tokens_agrees(t: Context) -> None:
    for text in _TEXTS:
        answer = await t.generate(text, max_tokens=1)
        t.equal(answer.usage.prompt_tokens, await t.engine.count_tokens(text), f"usage.prompt_tokens of {text!r}")


@check(
    "tokens.within-the-vocabulary",
    must="Every generated id is below `info.vocab_size`.",
    advice="report the true size in BackendInfo.vocab_size, and never draw from the padding of the logits",
)
async def within_the_vocabulary(t: Context) -> None:
    answer = await t.generate(max_tokens=32, n=4, sampling=SamplingParams())
    size = t.engine.info.vocab_size
    beyond = [token for choice in answer.choices for token in choice.token_ids if not 0 <= token < size]
    t.expect(not beyond, expected=f"ids from 0 to {size - 1}", seen=beyond)


@check(
    "tokens.prompt-decides",
    must="The completion depends on the prompt: different prompts do not all get the same tokens.",
    advice="compute the prompt that belongs to the request's id; see whether prompts are cut or shared by mistake",
)
async def prompt_decides(t: Context) -> None:
    prompts = (*PROMPTS, "1 2 3 4 5 6", "def main():\n    print(", "Q: What is 2 + 2?\nA:")
    seen = {tuple((await t.generate(prompt, max_tokens=8)).token_ids) for prompt in prompts}
    t.expect(len(seen) > 1, expected=f"more than one answer to {len(prompts)} different prompts", seen=seen)
