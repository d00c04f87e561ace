"""The scoreboard follows from the reports and from nothing else, and says where each number is from."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import make_scoreboard
import pytest
from anyengine_conformance.check import all_checks
from anyengine_conformance.report import BadReport, signed, write_report
from anyengine_conformance.results import Environment, Report, Result, SubjectFacts, Suite
from scoreboard.reports import BadResult

ROOT = Path(__file__).parents[1]
CHECKS = {made.id: made for made in all_checks()}
FAMILIES = list(dict.fromkeys(made.family for made in CHECKS.values()))
INTERVAL = {"median": 123.4, "low": 101.2, "high": 145.6}
BENCHMARK = {"environment": {"date": "2026-11-28T10:00:00+00:00", "commit": "c0ffee1", "packages": {"vllm": "0.25.1"}}}
README = """# x

<!-- scoreboard -->

old

<!-- /scoreboard -->

<!-- abilities -->

old

<!-- /abilities -->

rest
"""
ZERO = "1 passed, 0 failed, 0 unsupported and refused"
ENGINE = {"engine": "vllm", "model": "m", "dtype": "bfloat16", "device": "NVIDIA H200"}


class Cells(HTMLParser):
    """The cells of the matrix and the groups of the other tables, with the reports that they name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[tuple[str, str, str]] = []
        self.groups: list[str | None] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "td" and "is-" in (found.get("class") or ""):
            self.cells.append((str(found["class"]), str(found["data-report"]), ""))
            self._open = True
        if tag == "tbody":
            self.groups.append(found.get("data-report"))

    def handle_data(self, data: str) -> None:
        if self._open:
            kind, report, text = self.cells[-1]
            self.cells[-1] = (kind, report, f"{text} {data.strip()}".strip())

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository without a report."""
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def put(root: Path, name: str, content: Any) -> None:
    file = root / "results" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def conformance(
    root: Path, name: str, outcomes: dict[str, str], *, stopped: str = "", complete: bool = False, **subject: Any
) -> None:
    """A report with those outcomes."""
    results = [
        Result(
            id=made.id,
            family=made.family,
            must=made.must,
            tier=made.tier,
            variant=made.variant,
            outcome=outcome,
            reason="It is so. (https://example.org/line)" if outcome == "xfailed" else "",
        )
        for made, outcome in ((CHECKS[each], outcome) for each, outcome in outcomes.items())
    ]
    facts: dict[str, Any] = {"engine": "mine", "engine_version": "1.2", "model": "a/model", "device": "cpu"} | subject
    report = Report(
        started="2026-11-28T10:00:00+00:00",
        duration=1.0,
        suite=Suite(version="1", profile="certify", seed=0, complete=complete, oracle="reference"),
        subject=SubjectFacts(**facts),
        environment=Environment(platform="p", python="3", cpus=1, accelerators=[], packages={}, commit="c0ffee1"),
        results=results,
        stopped=stopped,
    )
    (root / "results" / name).parent.mkdir(parents=True, exist_ok=True)
    write_report(signed(report), root / "results" / name)


def made(root: Path) -> tuple[str, str]:
    """The page and the README."""
    page, readme = make_scoreboard.make(root).values()
    return page, readme


def test_the_committed_page_and_tables_follow_from_the_committed_reports():
    for file, text in make_scoreboard.make().items():
        assert file.read_text(encoding="utf-8") == text, "run: python tools/make_scoreboard.py"


def test_a_report_of_an_interrupted_run_says_so(root: Path):
    outcomes = {"streaming.terminal-is-last": "passed", "batching.no-cross-talk": "passed"}
    conformance(root, "c.json", outcomes, stopped="interrupted by SIGINT")
    page, readme = made(root)
    assert "an interrupted run with 2 checks" in page
    assert "of an interrupted run with 2 checks" in readme


def test_without_reports_every_section_says_not_measured(root: Path):
    page, readme = made(root)
    sections = re.findall(r'<h2 id="(\w+)">', page)
    assert page.count("<p>Not measured.</p>") == len(sections) - 1  # no failure is expected either
    assert readme == README.replace("old", "Not measured.")


def test_a_cell_counts_what_the_report_says_and_names_it(root: Path):
    outcomes = {
        "streaming.terminal-is-last": "passed",
        "streaming.no-torn-characters": "failed",
        "streaming.streams-do-not-mix": "unsupported",
        "streaming.entered-only-once": "xfailed",
        "batching.no-cross-talk": "passed",
    }
    conformance(root, "deep/er/whatever.json", outcomes)
    page, readme = made(root)
    cells = Cells(page).cells
    assert [report for _, report, _ in cells] == ["results/deep/er/whatever.json"] * (len(FAMILIES) + 1)
    (kind, _, text) = cells[1 + FAMILIES.index("streaming")]
    assert kind.split() == ["family", "is-failed"]
    assert text == ("1 passed, 1 failed, 1 unsupported and refused, 1 failed as expected 1 ✓ 1 ✗ 1 ! 1 ⊘")
    assert cells[1 + FAMILIES.index("tokens")][2] == "not run –"  # noqa: RUF001
    assert "| 2 / 1* / 1, of a selection of 5 checks |" in readme
    for fact in ("version 1.2", "a CPU", "model", "a selection of 5 checks", "2026-11-28", "c0ffee1"):
        assert fact in page
    assert 'It is so. (<a href="https://example.org/line">source</a>)' in page


def test_abilities_are_those_that_were_declared_when_the_engine_was_loaded(root: Path):
    declared = {"sampling": ["top_p", "top_k", "min_p"], "structured": ["regex"], "unproven": ["min_p"], "sleep": True}
    conformance(root, "a.json", {"batching.no-cross-talk": "passed"}, capabilities=declared)
    conformance(root, "b.json", {"batching.no-cross-talk": "passed"}, engine="other", simulated=True, capabilities={})
    lines = made(root)[1].splitlines()
    assert "|  | mine | other, simulated |" in lines
    assert "| temperature, top-p, top-k | `top_p`, `top_k` | no |" in lines
    assert "| min-p | yes† | no |" in lines
    assert "| structured output | `regex` | no |" in lines
    assert "| sleeps and wakes | yes | no |" in lines


def test_what_was_simulated_says_so_in_every_cell(root: Path):
    conformance(root, "one.json", {"batching.no-cross-talk": "passed"}, simulated=True, device="cuda")
    conformance(root, "two.json", {"batching.no-cross-talk": "passed"}, device="NVIDIA H200")
    page, readme = made(root)
    said = {report: (kind, text) for kind, report, text in Cells(page).cells if "not run" not in text}
    assert said["results/one.json"] == ("family is-passed simulated", "simulated: " + ZERO + " 1 ✓ sim.")
    assert said["results/two.json"] == ("family is-passed", f"{ZERO} 1 ✓")
    for kind, report, text in Cells(page).cells:
        assert ("simulated" in kind, "sim." in text) == (report.endswith("one.json"),) * 2
    rows = [line for line in readme.splitlines() if line.startswith("| **")]
    assert [(row.split(" | ")[1], " sim., of " in row) for row in rows] == [("NVIDIA H200", False), ("simulated", True)]


def test_the_readme_has_a_row_for_each_report_and_leaves_families_to_the_page(root: Path):
    conformance(root, "whole.json", {"batching.no-cross-talk": "passed"}, complete=True)
    conformance(root, "few.json", {"seeds.run-repeats": "failed"})
    conformance(root, "another.json", {"seeds.run-repeats": "failed"}, model="another")
    page, readme = made(root)
    rows = [line for line in readme.splitlines() if line.startswith("| **")]
    names = ["another.json", "few.json", "whole.json"]
    assert [row.rsplit("/", 1)[1] for row in rows] == [f"{name}) |" for name in names]
    assert "| family |" not in readme
    # The page's first cell of a row is of all checks.
    assert [report for kind, report, _ in Cells(page).cells if "total" in kind] == [f"results/{name}" for name in names]


def test_an_edited_report_is_refused_by_name(root: Path):
    conformance(root, "edited.json", {"batching.no-cross-talk": "failed"})
    file = root / "results" / "edited.json"
    file.write_text(file.read_text().replace('"failed"', '"passed"'))
    with pytest.raises(BadReport, match=r"edited\.json was changed after the suite wrote it"):
        made(root)


def test_a_report_without_its_checksum_is_refused_by_name(root: Path):
    conformance(root, "bare.json", {"batching.no-cross-talk": "failed"})
    content = json.loads((root / "results" / "bare.json").read_text())
    del content["checksum"]
    put(root, "bare.json", content)
    with pytest.raises(BadReport, match=r"bare\.json is no conformance report"):
        made(root)


def test_parts_of_which_a_proof_makes_one_report_count_nowhere(root: Path):
    outcomes = {"batching.no-cross-talk": "passed", "streaming.terminal-is-last": "failed"}
    conformance(root, "whole.json", outcomes)
    for number, (name, outcome) in enumerate(outcomes.items()):
        conformance(root, f"parts/{number}.json", {name: outcome})
    conformance(root, "parts/later.json", {"streaming.terminal-is-last": "passed"})
    page, _ = made(root)
    assert {report for _, report, _ in Cells(page).cells} == {"results/whole.json"}


def test_a_quantised_checkpoint_without_drift_or_speed_says_so(root: Path):
    row = {"made_by": "vllm", "made_as": "int8", "against": "vllm", "drift": None, "date": "2026-11-28"}
    drift = {"perplexity_ratio": 1.25, "mean_kl": 0.5, "top1_agreement": 0.75, "tokens": 10}
    timed = {"drift": drift, "speed": {"alone": INTERVAL, "together": INTERVAL}, "label": "vLLM, graphs"}
    put(root, "quantization.json", [row | ENGINE, row | ENGINE | timed])
    page, _ = made(root)
    assert page.count("not timed") == 2
    assert page.count("<td>not measured</td>") == 1
    assert page.count("<td>123 [101, 146]</td>") == 2
    assert "in vLLM, graphs on NVIDIA H200, bfloat16; against its own float scores; 10 tokens" in page
    assert "75.0%" in page


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BENCHMARK | ENGINE | {"settings": {}, "figures": {"1": {"times_one": INTERVAL}}}, "looks like .* Concurrency"),
        (BENCHMARK | {"settings": {}, "figures": {"native_tokens_per_second": 3}}, "looks like .* Overhead"),
        ([{"drift": {}}], "looks like"),
    ],
)
def test_a_result_that_is_not_as_its_benchmark_writes_it_is_refused_by_name(root: Path, content: Any, words: str):
    put(root, "odd.json", content)
    with pytest.raises(BadResult, match=rf"odd\.json {words}"):
        made(root)


@pytest.mark.parametrize(
    ("draft", "words"),
    [("made/draft", "draft_model, draft"), (f".cache/{ENGINE['model']}", "draft_model, the model itself")],
)
def test_speculation_is_told_apart_by_what_drafts(root: Path, draft: str, words: str):
    gain = {"speed_up": {"alone": INTERVAL}, "drafted": 40, "accepted": 10, "acceptance": 0.25}
    settings = {"speculative": {"method": "draft_model", "model": draft}}
    put(root, "h200/b.json", BENCHMARK | ENGINE | {"settings": settings, "figures": gain})
    assert f": {words}</strong>" in made(root)[0]


def test_what_the_proof_on_gpus_writes_is_found_by_what_it_says(root: Path):
    point = {"tokens_per_second": INTERVAL, "times_one": INTERVAL}
    put(root, "h200/a.json", BENCHMARK | ENGINE | {"settings": {}, "figures": {"1": point, "64": point}})
    gain = {"speed_up": {"alone": INTERVAL, "together": INTERVAL}, "drafted": 40, "accepted": 10, "acceptance": 0.25}
    settings = {"speculative": {"method": "ngram"}}
    put(root, "h200/b.json", BENCHMARK | ENGINE | {"settings": settings, "figures": gain})
    bars = {"bar": 0.99, "bar_low": 0.97}
    cost = {
        "native_tokens_per_second": INTERVAL,
        "throughput_ratio": {"here.stream": {"median": 1.0, "low": 0.96, "high": 1.1} | bars},
        "added_ms_to_first_token": {"here": {"median": 0.4, "low": 0.3, "high": 0.5, "bar": 1.0}},
        "pairs": {"throughput_ratio": {"here.stream": [1.0]}, "added_ms_to_first_token": {"here": [0.4]}},
    }
    parts = [{"pairs": 1, "dates": ["2026-11-28"]}] * 3
    put(root, "h200/c.json", BENCHMARK | {"settings": {"pairs": 10}, "figures": cost, "parts": parts})
    put(root, "h200/d.step.json", {"step": "overhead/x", "outcome": "cut off", "command": [], "date": "2026-11-28"})
    put(root, "h200/machine.json", {"commit": "decaf00", "gpus": [], "packages": {"here": {"mine": "9.8"}}})
    put(root, "h200/other.json", {"figures": {}})
    unknown: dict[str, Any] = {"engine_version": None, "config": {"environment": "here"}, "device": "cuda"}
    conformance(root, "h200/e.json", {"batching.no-cross-talk": "passed"}, **unknown)
    page, _ = made(root)
    assert Cells(page).groups == [None, *(f"results/h200/{name}.json" for name in "abcc")]
    assert page.count("123 [101, 146]") == 10  # cells, and the words of plots
    assert "25.0% of 40" in page
    assert "1.0000 [0.9600, 1.1000]" in page
    assert [page.count("✗ no"), page.count("✓ yes")] == [1, 3]  # the lower bound is below its bar
    assert "1 of 30 pairs" in page
    assert "version 9.8" in page
    assert "cut off" in page
    assert "h200/other.json</a>" in page
