"""What is verified of the engines that were never run, and how: one table, the same in three places, and true."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "docs/engines/trtllm.md", "docs/engines/tgi.md")


def table(place: str) -> list[list[str]]:
    """The cells of its rows, the line of dashes left out."""
    (found,) = re.findall(r"<!-- verified -->\n\n(.+?)\n\n<!-- /verified -->", (ROOT / place).read_text(), re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize("place", PLACES[1:])
def test_the_table_is_the_same_everywhere(place: str):
    assert table(place) == table(PLACES[0])


def test_each_cell_says_how_and_when():
    head, *rows = table(PLACES[0])
    assert [len(row) for row in rows] == [len(head)] * len(rows)
    for what, *cells in rows:
        for cell in cells:
            dated = re.search(r"\b2026-\d\d-\d\d\b", cell)
            how = cell.startswith(("**simulated**", "**on hardware**", "held against")) or "schemathesis" in cell
            unclaimed = cell in {"**not at all**", "there is no such specification", "the client is the one of `tgi`"}
            assert unclaimed or (how and dated), (what, cell)


def test_the_numbers_of_the_suite_are_those_that_the_tests_hold():
    (row,) = [row for row in table(PLACES[0]) if row[0] == "the whole conformance suite"]
    stated = [tuple(map(int, re.findall(r"(\d+) (?:checks unsupported|not run)", cell))) for cell in row[1:]]
    trtllm = json.loads((ROOT / "plugins/trtllm/tests/expected_outcomes.json").read_bytes())
    tgi = ROOT / "plugins/tgi/tests"
    not_run = ast.literal_eval(
        re.search(r"NOT_RUN = (\[.+?\])", (tgi / "test_conformance.py").read_text(), re.DOTALL)[1]
    )
    assert stated == [
        (len(trtllm["unsupported"]), len(trtllm["not-run"])),
        (len((tgi / "unsupported.txt").read_text().split()), len(not_run)),
    ]
