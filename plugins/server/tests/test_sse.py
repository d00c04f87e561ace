"""Events are the same however the bytes are cut, and what is no event is an error."""

from __future__ import annotations

import itertools

import pytest
from anyengine_server import Event, EventParser, MalformedAnswer
from hypothesis import given
from hypothesis import strategies as st

STREAM = (
    b'\xef\xbb\xbf: hello\n\ndata:{"a": 1}\n\nevent: error\r\ndata: two\r\ndata: lines\r\n\r\n'
    b"id: 7\nretry: 3\ndata\n\n\n:\ndata:  kept\rdata:x\r\r"
)
EVENTS = [Event(b'{"a": 1}'), Event(b"two\nlines", "error"), Event(b""), Event(b" kept\nx")]


def parsed(pieces: list[bytes]) -> list[Event]:
    parser = EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    # A carriage return at the very end may be half of a line end: the next byte tells.
    return [*found, *parser.feed(b"\n")]


def test_events_are_parsed_as_the_standard_says():
    assert parsed([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_cuts_between_pieces_do_not_matter(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parsed([STREAM[start:stop] for start, stop in itertools.pairwise(edges)]) == EVENTS


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_events_or_a_typed_error(pieces: list[bytes]):
    parser = EventParser()
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                assert isinstance(event, Event)
    except MalformedAnswer:
        pass


def test_a_line_that_is_no_field_is_an_error():
    with pytest.raises(MalformedAnswer, match="Internal Server Error"):
        list(EventParser().feed(b"Internal Server Error\n\n"))


@pytest.mark.parametrize("piece", [b"data:" + b"x" * 40, b"data: x\n", b": comment\ndata:xxxxx\ndata:yyyyyy\n"])
def test_an_event_without_an_end_is_bounded(piece: bytes):
    parser = EventParser(max_bytes=64)
    with pytest.raises(MalformedAnswer, match="more than 64 bytes"):  # noqa: PT012 the block is what is looked at
        for _ in range(100):
            list(parser.feed(piece))


def test_comments_that_keep_a_connection_alive_need_no_memory():
    parser = EventParser(max_bytes=64)
    for _ in range(1000):
        assert list(parser.feed(b":keep-alive\n\n")) == []
    assert not parser.pending


def test_a_stream_that_ends_within_an_event_is_seen():
    parser = EventParser()
    assert list(parser.feed(b"data: a\n\ndata: b")) == [Event(b"a")]
    assert parser.pending
