from __future__ import annotations

import pytest
from anyengine.errors import InvalidRequest
from anyengine.text.stopping import StopMatch, StopMatcher
from hypothesis import given
from hypothesis import strategies as st


def first_match(text: str, stops: list[str], armed_from: int = 0) -> StopMatch | None:
    """The specification, in as many words."""
    for end in range(armed_from + 1, len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            stop = max(ending_here, key=len)
            return StopMatch(stop, end - len(stop), end)
    return None


def held_back(text: str, stops: list[str]) -> str:
    prefixes = {stop[:length] for stop in stops for length in range(len(stop))}
    return max((text[start:] for start in range(len(text) + 1) if text[start:] in prefixes), key=len)


letters = st.text(alphabet="ab", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


@given(pieces=st.lists(st.tuples(letters, st.booleans()), max_size=6), stops=stop_lists)
def test_the_match_is_that_of_the_whole_text(pieces: list[tuple[str, bool]], stops: list[str]) -> None:
    pieces = sorted(pieces, key=lambda piece: piece[1])  # armed text follows unarmed text
    text = "".join(piece for piece, _ in pieces)
    armed_from = sum(len(piece) for piece, armed in pieces if not armed)
    expected = first_match(text, stops, armed_from)
    matcher = StopMatcher(stops)
    released, fed = "", ""
    for piece, armed in pieces:
        out, match = matcher.feed(piece, armed=armed)
        released += out
        fed += piece
        if match is not None:
            assert match == expected
            assert released == text[: match.start]
            return
        assert released + held_back(fed, stops) == fed
    assert expected is None
    assert released + matcher.flush() == text


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["\nUser:", "User"], "hello\nUser: hi", StopMatch("User", 6, 10)),
        (["abcd", "bc"], "abcd", StopMatch("bc", 1, 3)),
        (["c", "bc", "abc"], "abc", StopMatch("abc", 0, 3)),
        (["aab"], "aaab", StopMatch("aab", 1, 4)),
        (["👩‍👧"], "a👩‍👩‍👩‍👧b", StopMatch("👩‍👧", 5, 8)),
        (["é"], "e\u0301", None),
        (["</s>"], "</s", None),
    ],
)
def test_the_first_to_end_wins_then_the_longest(stops: list[str], text: str, expected: StopMatch | None) -> None:
    found = None
    matcher = StopMatcher(stops)
    for character in text:
        _, found = matcher.feed(character)
        if found:
            break
    assert found == expected == first_match(text, stops)


def test_no_more_is_held_back_than_may_become_a_stop() -> None:
    matcher = StopMatcher(["<|im_end|>"])
    assert matcher.feed("a < b") == ("a < b", None)
    assert matcher.feed("<|im_") == ("", None)
    assert matcher.feed("x") == ("<|im_x", None)
    assert matcher.flush() == ""


def test_a_stop_that_ends_in_unarmed_text_does_not_count_but_may_begin_there() -> None:
    matcher = StopMatcher(["ab", "bc"])
    assert matcher.feed("ab", armed=False) == ("a", None)
    assert matcher.feed("c") == ("", StopMatch("bc", 1, 3))


@pytest.mark.parametrize("stops", [[], [""], ["a", ""]])
def test_empty_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        StopMatcher(stops)
    assert caught.value.field == "stop"
