from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anyengine.errors import InvalidConfig
from anyengine.text.decoding import DecoderTable
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

if TYPE_CHECKING:
    from anyengine.text.decoding import IncrementalDecoder

# Each of these runs for every kind of tokenizer.
many = settings(max_examples=60)


def chunked(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    borders = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids)), label="borders"))
    return [ids[start:end] for start, end in zip([0, *borders], [*borders, len(ids)], strict=True)]


def decode(stream: IncrementalDecoder, chunks: list[list[int]]) -> str:
    return "".join([stream.feed(chunk) for chunk in chunks]) + stream.flush()


@many
@given(data=st.data(), skip=st.booleans())
def test_any_ids_in_any_chunks_decode_as_the_library_decodes_them(
    tokenizer: Tokenizer, table: DecoderTable, data: st.DataObject, *, skip: bool
) -> None:
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2) | st.integers(size - 8, size + 2)), label="ids")
    stream = table.stream(skip_special_tokens=skip)
    assert decode(stream, chunked(data, ids)) == tokenizer.decode(ids, skip_special_tokens=skip)


@many
@given(data=st.data(), text=st.text())
def test_encoded_text_in_any_chunks_decodes_as_the_library_decodes_it(
    tokenizer: Tokenizer, table: DecoderTable, data: st.DataObject, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    assert decode(table.stream(), chunked(data, ids)) == tokenizer.decode(ids)


@many
@given(data=st.data(), raw=st.binary())
def test_any_bytes_decode_as_the_library_decodes_them(byte_level: Tokenizer, data: st.DataObject, raw: bytes) -> None:
    table = DecoderTable.from_tokenizer(byte_level)
    by_byte = {entry: token_id for token_id, entry in table.raw.items() if len(entry) == 1}
    by_byte |= {t.encode(): token_id for token_id, t in table.texts.items() if len(t.encode()) == 1}
    ids = [by_byte[raw[i : i + 1]] for i in range(len(raw))]
    text = byte_level.decode(ids, skip_special_tokens=False)
    assert decode(table.stream(skip_special_tokens=False), chunked(data, ids)) == text
    # Rust's from_utf8_lossy and Python's "replace" agree, so one decoder serves both.
    assert text == raw.decode(errors="replace")


@many
@given(data=st.data(), raw=st.lists(st.sampled_from([*range(0x7E, 0x100), 0x41]), max_size=12))
def test_byte_runs_decode_as_the_library_decodes_them(llama_2: Tokenizer, data: st.DataObject, raw: list[int]) -> None:
    ids = [1 + byte for byte in raw]
    assert decode(DecoderTable.from_tokenizer(llama_2).stream(), chunked(data, ids)) == llama_2.decode(ids)


@many
@given(data=st.data())
def test_a_copy_goes_on_from_the_same_state_alone(
    tokenizer: Tokenizer, table: DecoderTable, data: st.DataObject
) -> None:
    vocabulary = st.lists(st.integers(0, tokenizer.get_vocab_size()), max_size=8)
    head, tail, other = (data.draw(vocabulary, label=name) for name in ("head", "tail", "other"))
    stream = table.stream()
    before = stream.feed(head)
    copy = stream.copy()
    assert before + decode(copy, [other]) == tokenizer.decode(head + other)
    assert before + decode(stream, [tail]) == tokenizer.decode(head + tail)


def test_a_character_is_never_split(byte_level: Tokenizer) -> None:
    stream = DecoderTable.from_tokenizer(byte_level).stream()
    family = "👩‍👩‍👧‍👦"
    pieces = [stream.feed([token_id]) for token_id in byte_level.encode(family).ids]
    assert "".join(pieces) == family
    assert "\ufffd" not in "".join(pieces)


def test_an_incomplete_character_is_one_replacement_at_the_end(byte_level: Tokenizer) -> None:
    stream = DecoderTable.from_tokenizer(byte_level).stream()
    ids = byte_level.encode("ok 𝄞").ids[:-1]
    assert stream.feed(ids) == "ok "
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_of_a_run_are_held_until_the_run_ends(llama_2: Tokenizer) -> None:
    euro = [1 + byte for byte in "€".encode()]
    accented = llama_2.token_to_id("é")
    stream = DecoderTable.from_tokenizer(llama_2).stream()
    assert [stream.feed([token_id]) for token_id in [accented, *euro, accented]] == ["é", "", "", "", "€é"]


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.CTC(), "CTC"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (None, "no decoder at all"),
        (decoders.Strip(content=" ", left=1), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(content=" ", right=1)]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), "Replace"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.ByteFallback()]), "ByteFallback"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Metaspace()]), "Metaspace"),
        (decoders.Sequence([decoders.Metaspace(), decoders.ByteLevel()]), "ByteLevel"),
    ],
)
def test_other_decoders_are_refused_by_name(decoder: decoders.Decoder | None, named: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(InvalidConfig, match=named) as caught:
        DecoderTable.from_tokenizer(tokenizer)
    assert caught.value.field == "tokenizer"
