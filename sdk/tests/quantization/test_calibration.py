"""The text that a scheme is fitted to."""

import hashlib
import json

import pytest
from anyengine import Calibration, InvalidConfig
from anyengine.quantization.calibration import builtin_texts, calibration_of, draw


def bytes_of(text):
    return list(text.encode())


def test_texts_are_strung_together_and_cut_into_sequences():
    sequences, drawn = draw(Calibration(texts=["abcdefgh", "ijklmnopqr"], sequence_length=8), bytes_of, None)
    assert sorted(bytes(token for sequence in sequences for token in sequence).decode()) in (
        sorted("abcdefghijklmnop"),
        sorted("ijklmnopqrabcdef"),
    )
    assert (len(sequences), drawn.count, drawn.sequence_length, drawn.source) == (2, 2, 8, "texts")
    assert drawn.sha256 == hashlib.sha256(b'["abcdefgh","ijklmnopqr"]').hexdigest()
    assert drawn.licence is None


def test_the_same_seed_draws_the_same_and_another_draws_another():
    texts = [f"text number {number}" for number in range(20)]
    one, again, other = (
        draw(Calibration(texts=texts, sequence_length=8, count=3, seed=seed), bytes_of, None)[0] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_without_a_count_all_of_the_text_is_drawn_up_to_512_sequences():
    assert len(draw(Calibration(texts=["x" * 8 * 100], sequence_length=8), bytes_of, None)[0]) == 100
    assert len(draw(Calibration(texts=["x" * 8 * 600], sequence_length=8), bytes_of, None)[0]) == 512


def test_a_text_file_is_one_text_and_jsonl_is_one_a_line(tmp_path):
    (tmp_path / "one.txt").write_text("first line\nsecond line")
    (tmp_path / "many.jsonl").write_text('"first line"\n\n{"text": "second line", "id": 7}\n')
    whole, _ = draw(Calibration(file=str(tmp_path / "one.txt"), sequence_length=22), bytes_of, None)
    assert bytes(whole[0]) == b"first line\nsecond line"
    _, drawn = draw(Calibration(file=str(tmp_path / "many.jsonl"), sequence_length=8), bytes_of, None)
    assert drawn.sha256 == hashlib.sha256(b'["first line","second line"]').hexdigest()
    assert drawn.source == "many.jsonl"


def test_the_built_in_set_has_a_licence_and_no_text_of_those_that_drift_is_measured_on():
    _, drawn = draw(Calibration(), bytes_of, None)
    assert (drawn.source, drawn.licence) == ("builtin", "Apache-2.0")
    assert not set(builtin_texts("calibration")) & set(builtin_texts("held-out"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("builtin", Calibration()),
        ("some.txt", Calibration(file="some.txt")),
        (["one", "two"], Calibration(texts=("one", "two"))),
        (Calibration(seed=3), Calibration(seed=3)),
    ],
)
def test_a_caller_may_give_a_file_texts_or_all_of_it(value, expected):
    assert calibration_of(value) == expected


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"texts": ["short"]}, "calibration", "5 tokens, less than one sequence of 256"),
        ({"texts": []}, "calibration", "0 tokens"),
        ({"texts": ["x" * 100], "sequence_length": 10, "count": 11}, "calibration.count", "gives 10 sequences"),
        ({"texts": ["x" * 100], "sequence_length": 65}, "calibration.sequence_length", "the model's context of 64"),
        ({"file": "/nowhere.txt"}, "calibration.file", "cannot be read"),
    ],
)
def test_text_that_does_not_do_is_refused_by_name(options, field, said):
    with pytest.raises(InvalidConfig, match=said) as caught:
        draw(Calibration(**options), bytes_of, 64 if "sequence_length" in options else None)
    assert caught.value.field == field


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"words": "x"}', "7", '{"text": 7}'])
def test_a_line_that_holds_no_text_is_named(line, tmp_path):
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps('good')}\n{line}\n")
    with pytest.raises(InvalidConfig, match="line 2 of"):
        draw(Calibration(file=str(tmp_path / "bad.jsonl")), bytes_of, None)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"file": "a", "texts": ["b"]}, "Calibration"),
        ({"sequence_length": 7}, "sequence_length"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"words": 5}, "words"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_by_name(options, field):
    with pytest.raises(InvalidConfig) as caught:
        Calibration(**options)
    assert caught.value.field == field


def test_something_else_is_no_calibration():
    with pytest.raises(InvalidConfig, match="not a int"):
        calibration_of(7)
