"""Small tokenizers of every supported kind, trained or put together in memory."""

from __future__ import annotations

import functools

import pytest
from anyengine.text.decoding import DecoderTable
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Don't you think so?",
    "Der schnelle braune Fuchs springt über den faulen Hund; schöne Grüße aus Köln!",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好。",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀 é e\u0301",
    "def f(x):\n    return x ** 2\n\nprint(f(3))\n",
]


def _with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True), "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("naïve 木"), AddedToken(" lead"), AddedToken("▁▁x")])
    tokenizer.add_special_tokens([AddedToken("a b", special=True, normalized=True), "~"])
    return tokenizer


def _byte_level(*, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_added(tokenizer)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [
    "~",
    "▁",
    "▁the",
    "▁quick",
    "a",
    "b",
    "é",
    "ü",
    "木",
    "▁▁",
    "x▁y",
    "▁ \n",
    "<0xZZ>",
    "<0x1>",
    "<0x+A>",
    "<0xé>",
]


def _byte_fallback(decoder: decoders.Decoder) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(["<unk>", *BYTES, *PIECES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    return _with_added(tokenizer)


def _unigram(scheme: str, *, sequence: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)  # noqa: S106
    tokenizer.train_from_iterator(CORPUS, trainer)
    metaspace = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([metaspace]) if sequence else metaspace
    return _with_added(tokenizer)


def _sequence(*steps: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence(list(steps))


BUILDERS = {
    "byte-level": lambda: _byte_level(vocab_size=400),
    "byte-level-bytes-only": lambda: _byte_level(vocab_size=256),
    "llama-2": lambda: _byte_fallback(
        _sequence(
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)
        )
    ),
    "llama-2-strip-3": lambda: _byte_fallback(
        _sequence(
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=3)
        )
    ),
    "gemma": lambda: _byte_fallback(_sequence(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())),
    "regex-replace": lambda: _byte_fallback(
        _sequence(decoders.Replace(Regex("▁+"), "_"), decoders.ByteFallback(), decoders.Fuse())
    ),
    "fallback-alone": lambda: _byte_fallback(decoders.ByteFallback()),
    "metaspace-then-fallback": lambda: _byte_fallback(_sequence(decoders.Metaspace(), decoders.ByteFallback())),
    "fallback-then-metaspace": lambda: _byte_fallback(_sequence(decoders.ByteFallback(), decoders.Metaspace())),
    "metaspace-always": lambda: _unigram("always"),
    "metaspace-first": lambda: _unigram("first", sequence=True),
    "metaspace-never": lambda: _unigram("never"),
}


@functools.cache
def build(kind: str) -> Tokenizer:
    return BUILDERS[kind]()


@pytest.fixture(params=BUILDERS, scope="session")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return build(request.param)


@pytest.fixture(scope="session")
def table(tokenizer: Tokenizer) -> DecoderTable:
    return DecoderTable.from_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return build("byte-level")


@pytest.fixture(scope="session")
def llama_2() -> Tokenizer:
    return build("llama-2")
