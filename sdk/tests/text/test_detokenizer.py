from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anyengine.text.decoding import DecoderTable
from anyengine.text.detokenizer import Detokenizer
from hypothesis import event, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Options:
    stops: tuple[str, ...]
    min_tokens: int
    skip_special_tokens: bool
    include_stop: bool


@dataclass(frozen=True)
class Result:
    text: str
    num_tokens: int
    stop: tuple[str, int, int] | None


def specified(
    tokenizer: Tokenizer, table: DecoderTable, ids: list[int], options: Options, *, terminated: bool
) -> Result:
    """The specification: slow, on whole texts, every prefix decoded by a decoder of its own."""
    body = ids[:-1] if terminated and not options.include_stop else ids
    final = []  # the text that is final after each token
    for count in range(1, len(body) + 1):
        stream = table.stream(skip_special_tokens=options.skip_special_tokens)
        final.append(stream.feed(body[:count]))
    whole = tokenizer.decode(body, skip_special_tokens=options.skip_special_tokens)
    # What is final only at the end is completed by the last token of all.
    completed_by = [
        next((i for i, text in enumerate(final) if len(text) > at), len(ids) - 1) for at in range(len(whole))
    ]
    for end in range(1, len(whole) + 1):
        ending_here = [stop for stop in options.stops if whole[:end].endswith(stop)]
        token = completed_by[end - 1]
        if ending_here and token >= options.min_tokens:
            stop = max(ending_here, key=len)
            start = end - len(stop)
            return Result(whole[: end if options.include_stop else start], token + 1, (stop, start, end))
    return Result(whole, len(ids), None)


def streamed(table: DecoderTable, chunks: list[list[int]], options: Options, *, terminated: bool) -> Result:
    detokenizer = Detokenizer(
        table,
        stops=options.stops,
        min_tokens=options.min_tokens,
        skip_special_tokens=options.skip_special_tokens,
        include_stop=options.include_stop,
    )
    text = ""
    for number, chunk in enumerate(chunks, start=1):
        text += detokenizer.feed(chunk, terminated=terminated and number == len(chunks))
    text += detokenizer.finish()
    stopped = detokenizer.stopped
    return Result(text, detokenizer.num_tokens, stopped and (stopped.stop, stopped.start, stopped.end))


@settings(max_examples=60)
@given(data=st.data(), terminated=st.booleans())
def test_the_result_is_a_function_of_the_tokens_not_of_the_chunks(
    tokenizer: Tokenizer, table: DecoderTable, data: st.DataObject, *, terminated: bool
) -> None:
    size = tokenizer.get_vocab_size()
    few = data.draw(st.lists(st.integers(0, size), min_size=1, max_size=6), label="few")
    ids = data.draw(st.lists(st.sampled_from(few), min_size=1, max_size=20), label="ids")
    text = tokenizer.decode(ids, skip_special_tokens=False)
    spans = st.tuples(st.integers(0, len(text)), st.integers(1, 5)).map(lambda span: text[span[0] : sum(span)])
    options = Options(
        tuple(data.draw(st.lists((spans | st.text()).filter(bool), max_size=3), label="stops")),
        data.draw(st.integers(0, 8), label="min_tokens"),
        data.draw(st.booleans(), label="skip"),
        data.draw(st.booleans(), label="include"),
    )
    # The token that terminated is the last of the last chunk, so the last chunk is not empty.
    borders = sorted(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=len(ids)), label="borders"))
    chunks = [ids[start:end] for start, end in zip([0, *borders], [*borders, len(ids)], strict=True)]
    expected = specified(tokenizer, table, ids, options, terminated=terminated)
    event("stopped" if expected.stop else "not stopped")
    assert streamed(table, chunks, options, terminated=terminated) == expected


def stream(
    tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...], *, terminated: bool = False, **options: Any
) -> Result:
    chosen = Options(stops, **({"min_tokens": 0, "skip_special_tokens": True, "include_stop": False} | options))
    return streamed(DecoderTable.from_tokenizer(tokenizer), [ids], chosen, terminated=terminated)


def test_tokens_after_the_one_that_completed_the_stop_are_discarded(byte_level: Tokenizer) -> None:
    head, tail = byte_level.encode("one two").ids, byte_level.encode(" three").ids
    assert stream(byte_level, head + tail, ("two",)) == Result("one ", len(head), ("two", 4, 7))
    assert stream(byte_level, head + tail, ("two",), include_stop=True) == Result("one two", len(head), ("two", 4, 7))


def test_a_stop_counts_only_with_min_tokens_before_the_completing_token(byte_level: Tokenizer) -> None:
    ids = [byte_level.token_to_id(letter) for letter in "axax"]
    assert stream(byte_level, ids, ("x",), min_tokens=1) == Result("a", 2, ("x", 1, 2))
    assert stream(byte_level, ids, ("x",), min_tokens=2) == Result("axa", 4, ("x", 3, 4))
    assert stream(byte_level, ids, ("x",), min_tokens=4) == Result("axax", 4, None)


def test_the_terminating_token_is_counted_but_is_text_only_with_include_stop(byte_level: Tokenizer) -> None:
    end = byte_level.token_to_id("<|im_end|>")
    ids = [byte_level.token_to_id("a"), end]
    assert stream(byte_level, ids, (), terminated=True, skip_special_tokens=False) == Result("a", 2, None)
    shown = {"include_stop": True, "skip_special_tokens": False}
    assert stream(byte_level, ids, (), terminated=True, **shown) == Result("a<|im_end|>", 2, None)
    assert stream(byte_level, ids, (), terminated=True, include_stop=True) == Result("a", 2, None)
    assert stream(byte_level, ids, (), skip_special_tokens=False) == Result("a<|im_end|>", 2, None)


def test_what_is_final_only_at_the_end_may_complete_a_stop(llama_2: Tokenizer) -> None:
    euro = [1 + byte for byte in "€".encode()]
    assert stream(llama_2, euro, ("€",)) == Result("", 3, ("€", 0, 1))
    assert stream(llama_2, euro, ("€",), min_tokens=3) == Result("€", 3, None)
