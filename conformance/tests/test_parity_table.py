"""The parity table: what is counted, and that nothing unlike is compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from anyengine import InvalidConfig
from anyengine.cli import main
from anyengine.outputs import Score, TokenLogprobs
from anyengine_conformance.parity_table import judging
from anyengine_conformance.parity_table.answers import Answer, Configuration, answer, read
from anyengine_conformance.parity_table.judging import Report, Row, judge, judged
from anyengine_conformance.parity_table.page import written
from anyengine_conformance.parity_table.prompts import KINDS, fingerprint, prompts
from click.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = [prompt.id for prompt in prompts()]
BEST, NEAR, FAR, END = 10, 11, 12, 2
#: Nats behind the best one.
BEHIND = {BEST: 0.0, NEAR: 0.1, FAR: 0.3, END: 0.0}


class ScriptedOracle:
    """Each token is as far behind the best one as `BEHIND` says, and has -1 less that."""

    name = "scripted"

    async def score(self, token_ids: Sequence[int], *, logprobs: int = 0) -> Score:
        entries = [
            TokenLogprobs(token, -1 - behind, {token: -1 - behind} | ({} if behind == 0 else {BEST: -1.0}))
            for token, behind in ((token, BEHIND[token]) for token in token_ids)
        ]
        return Score(list(token_ids), [None, *entries[1:]])

    async def close(self) -> None: ...


def configuration(**changes: Any) -> Configuration:
    fields: dict[str, Any] = {
        "label": "made",
        "engine": "made",
        "engine_version": "1.0",
        "model": "model",
        "config": {},
        "dtype": "bfloat16",
        "device": "cpu",
        "logprobs": "raw",
        "eos_token_ids": [END],
        "prompts": fingerprint(),
        "max_tokens": 4,
        "at_once": 100,
        "date": "2026-01-02T03:04:05+00:00",
        "environment": {"accelerators": [], "cpus": 2},
    }
    return Configuration(**fields | changes)


def write(file: Path, special: dict[str, Answer] | None = None, names: Sequence[str] = NAMES, **changes: Any) -> Path:
    """Answers of four best tokens each, but for the special ones."""
    usual = {name: Answer(name, [BEST], [BEST] * 4, "length", [-1.0] * 4) for name in names}
    lines = [configuration(**changes), *(usual | (special or {})).values()]
    file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return file


async def row(file: Path):
    return await judged(ScriptedOracle(), file, model="model", prompt_ids={name: [BEST] for name in NAMES})


def test_there_are_25_prompts_of_each_kind_and_no_two_are_equal():
    assert [(kind, sum(prompt.kind == kind for prompt in prompts())) for kind in KINDS] == [(k, 25) for k in KINDS]
    assert len({json.dumps(prompt.content) for prompt in prompts()}) == 100


async def test_answers_of_best_tokens_never_part(tmp_path: Path):
    found = await row(write(tmp_path / "made.jsonl"))
    assert (found.all.prompts, found.all.tokens, found.all.parted, found.all.first_divergence) == (100, 400, 0, None)
    assert (found.all.not_best, found.all.defects, found.defects, found.divergences) == (0, 0, [], {})
    assert (found.all.error_mean, found.all.error_max) == (0.0, 0.0)


async def test_a_token_within_the_gap_is_a_near_tie_and_one_beyond_is_a_defect(tmp_path: Path):
    near = Answer("chat-01", [BEST], [BEST, NEAR, BEST, BEST], "length", [-1.0] * 4)
    far = Answer("code-02", [BEST], [BEST, BEST, NEAR, FAR], "length", [-1.0] * 4)
    found = await row(write(tmp_path / "made.jsonl", {near.id: near, far.id: far}))
    assert (found.all.parted, found.all.first_divergence, found.divergences) == (
        2,
        (1, 1.5),
        {"chat-01": 1, "code-02": 2},
    )
    assert (found.all.not_best, found.all.near_ties, found.all.defects, found.gap) == (3, 2, 1, 0.25)
    assert found.all.largest_loss == pytest.approx(0.3)
    assert [(each.prompt, each.step, each.seen, each.expected) for each in found.defects] == [
        ("code-02", 3, "12", "10")
    ]
    assert (found.kinds["chat"].defects, found.kinds["code"].defects) == (0, 1)
    assert found.all.error_mean == pytest.approx((0.1 + 0.1 + 0.3) / 400)


async def test_the_gap_is_that_of_the_data_type(tmp_path: Path):
    near = Answer("chat-01", [BEST], [NEAR] * 4, "length", None)
    found = await row(write(tmp_path / "made.jsonl", {near.id: near}, dtype="float32"))
    assert (found.gap, found.all.near_ties, found.all.defects) == (0.001, 0, 4)


@pytest.mark.parametrize(
    ("tokens", "reason", "expected"),
    [
        ([BEST] * 3, "length", "length after 4"),
        ([BEST, END, BEST, BEST], "length", "stop after 2"),
        ([BEST, END], "length", "stop after 2"),
        ([BEST] * 4, "stop", "length after 4"),
    ],
)
async def test_an_ending_that_the_tokens_do_not_explain_is_a_defect(
    tmp_path: Path, tokens: list[int], reason: str, expected: str
):
    wrong = Answer("chat-01", [BEST], tokens, reason, None)
    found = await row(write(tmp_path / "made.jsonl", {wrong.id: wrong}))
    assert [(each.seen, each.expected) for each in found.defects] == [(f"{reason} after {len(tokens)}", expected)]


async def test_an_engine_without_log_probabilities_has_no_error(tmp_path: Path):
    none = {name: Answer(name, [BEST], [BEST] * 4, "length", None) for name in NAMES}
    found = await row(write(tmp_path / "made.jsonl", none))
    assert (found.all.error_mean, found.all.error_max) == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": NAMES[:99]}, "99 answers to 100 prompts"),
        ({"prompts": "others"}, "or to other prompts than these"),
        ({"model": "another"}, "answers of another, and the oracle has model"),
        (
            {"special": {"chat-01": Answer("chat-01", [BEST, BEST], [BEST] * 4, "length", None)}},
            "other tokens than the oracle for chat-01",
        ),
    ],
)
async def test_what_cannot_be_compared_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(InvalidConfig, match=message):
        await row(write(tmp_path / "made.jsonl", **options))


@pytest.fixture(scope="module")
async def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference engine's answers, and what it said meanwhile."""
    file = tmp_path_factory.mktemp("parity") / "reference.jsonl"
    await answer("reference", {"model": "storyteller"}, file, label="reference", max_tokens=3, say=lambda _: None)
    return file


async def test_the_reference_engine_agrees_with_itself_and_a_changed_token_is_found_once(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = tmp_path / "report.json"
    wrong = tmp_path / "wrong.jsonl"
    given = read(answered)
    given.answers[7].token_ids[1] += 1
    wrong.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in [given.configuration, *given.answers]))
    found = await judge(
        [answered, wrong], report, oracle="reference", model="storyteller", config={}, say=lambda _: None
    )
    assert [each.all.defects > 0 for each in found.rows] == [False, True]
    assert (found.rows[0].all.parted, found.rows[0].all.tokens > 200) == (0, True)
    assert found.rows[0].all.error_max == pytest.approx(0, abs=1e-4)
    assert found.rows[1].divergences == {given.answers[7].id: 1}
    assert msgspec.json.decode(report.read_bytes(), type=Report) == found

    async def never(*_: Any, **__: Any) -> Row:
        raise AssertionError("a row that is there was judged again")

    monkeypatch.setattr(judging, "judged", never)
    again = await judge([wrong], report, oracle="reference", model="storyteller", config={}, say=lambda _: None)
    assert again.rows == found.rows[1:]


def without_the_last_two(answered: Path, folder: Path) -> Path:
    part = folder / "part.jsonl"
    *lines, cut, _ = answered.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines) + cut[: len(cut) // 2])  # ended in the middle of a line
    return part


def test_what_is_no_file_of_answers_is_refused(tmp_path: Path):
    file = tmp_path / "other.jsonl"
    file.write_text("{}\n")
    with pytest.raises(InvalidConfig, match="is no file of answers"):
        read(file)


async def test_answers_go_on_where_they_stopped(answered: Path, tmp_path: Path):
    part = without_the_last_two(answered, tmp_path)
    said: list[str] = []
    config = {"model": "storyteller"}
    await answer("reference", config, part, label="reference", max_tokens=3, say=said.append)
    assert said[0].endswith("; 2 prompts")
    assert {each.id: each.token_ids for each in read(part).answers} == {
        each.id: each.token_ids for each in read(answered).answers
    }
    await answer("reference", config, part, label="reference", max_tokens=3, say=said.append)
    assert said[-1] == "reference: all answers are there"


async def test_answers_of_two_configurations_never_mix(answered: Path, tmp_path: Path):
    part = without_the_last_two(answered, tmp_path)
    with pytest.raises(InvalidConfig, match=r"max_tokens 3, and this is 4: write to another file, or delete it"):
        await answer("reference", {"model": "storyteller"}, part, label="reference", max_tokens=4, say=lambda _: None)


def test_a_document_gets_the_tables_of_the_reports_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "before\n\n<!-- parity table: report.json -->\nold\n<!-- end of the parity table -->\n\nafter\n"
    figures = {
        "prompts": 100,
        "tokens": 400,
        "parted": 2,
        "first_divergence": [1, 1.5],
        "not_best": 3,
        "near_ties": 2,
        "largest_loss": 0.3,
        "defects": 1,
        "error_mean": None,
        "error_max": None,
    }
    made = {
        "configuration": msgspec.to_builtins(configuration()),
        "answers": "",
        "gap": 0.25,
        "all": figures,
        "kinds": dict.fromkeys(KINDS, figures | {"prompts": 25}),
        "defects": [{"prompt": "code-02", "step": 3, "behind": 0.3, "seen": "12", "expected": "10"}],
        "divergences": {},
    }
    report = {
        "model": "model",
        "prompts": "",
        "oracle": {"engine": "reference", "engine_version": "1", "dtype": "float32", "device": "cpu"},
        "gaps": {},
        "environment": {},
        "rows": [made],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "page.md").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["conformance", "parity", "page", "page.md"]).exit_code == 0
    new = (tmp_path / "page.md").read_text()
    assert new.startswith("before\n\n<!-- parity table: report.json -->\nmodel, 100 prompts, greedy, up to 4 tokens")
    assert "| made | made 1.0 | bfloat16, cpu | 2 of 100 | 1, 1.5 | 3 of 400 | 0.3000 of 0.25 nats allowed | 1 |" in new
    assert "| made | code-02 | 3 | 0.300 | 12 | 10 |" in new
    assert new.endswith("|\n<!-- end of the parity table -->\n\nafter\n")
    assert written(new, tmp_path) == new
