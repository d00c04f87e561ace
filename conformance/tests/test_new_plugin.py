"""What ``anyengine plugin new`` writes keeps the contract as it is; broken, the suite names what broke it."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from anyengine.scaffold import write_plugin
from anyengine.testing import make_model_folder
from anyengine_conformance import Runner, Settings, all_checks
from anyengine_conformance.progress import summary
from anyengine_conformance.report import read_report
from anyengine_conformance.results import Report
from anyengine_conformance.unproven import unproven, without_oracle


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_plugin("newcomer", tmp_path / "project")[0]


def _report(project: Path, *only: str) -> Report:
    """By the tests that came with it."""
    words = [word for name in only for word in ("--conformance-only", name)]
    file = project.parent / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conformance.py", *words]
    done = subprocess.run([*command, "--conformance-report", file], cwd=project, capture_output=True, text=True)  # noqa: PLW1510
    assert file.exists(), done.stdout + done.stderr
    return read_report(file)


def test_the_command_and_the_tests_hold_it_to_the_same_settings(project, monkeypatch):
    """Both read `conformance.toml`."""
    monkeypatch.chdir(project)
    settings = project / "conformance.toml"
    file = project.parent / "command.json"
    path = os.pathsep.join([str(project / "src"), *sys.path])
    command = [sys.executable, "-m", "anyengine", "conformance", "run", "--config", settings.name, "--only", "seeds"]
    subprocess.run([*command, "--report", file], env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True)
    by_tests = _report(project, "seeds")
    by_command = read_report(file)
    assert by_command.subject == by_tests.subject
    assert [(r.id, r.outcome) for r in by_command.results] == [(r.id, r.outcome) for r in by_tests.results]
    settings.write_text(settings.read_text().replace('oracle = "none"', 'oracle = "nobody"'))
    assert _report(project, "seeds").suite.oracle == "nobody"


def _change(project: Path, file: str, old: str, new: str) -> None:
    path = project / "src" / "anyengine_newcomer" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_untouched_it_passes_every_core_check_but_what_it_has_no_model_for(project):
    report = _report(project)
    assert report.good, summary(report)
    assert report.suite.complete
    core = Counter(result.outcome for result in report.results if result.tier == "core")
    others = {result.id for result in report.results if result.tier == "core" and result.outcome != "passed"}
    assert {result.id for result in report.results if result.tier == "core" and result.outcome == "not-run"} == {
        "parity.plain-text",  # it computes no model
        "requests.declared-conflicts",  # it has none
    }
    assert core["passed"] == core.total() - len(others)
    assert (unproven(report), without_oracle(report)) == ([], 17)  # temperature and top_k by its own draws; not hidden


def test_the_plugin_of_the_documentation_keeps_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "ngram-plugin")
    model = make_model_folder(tmp_path / "model")
    (model / "corpus.txt").write_text("the cat sat on a mat\nthe dog sat on a log\nthe cat sat on a log\n")
    settings = Settings(
        engine="ngram", factory="anyengine_ngram:plugin", config={"model": str(model)}, oracle="none", load_timeout=30.0
    )
    runner = Runner(settings)
    try:
        runner.open()
        report = runner.run(all_checks())
    finally:
        runner.close()
    assert report.good, summary(report)


FULL = "full = len(sequence.generated) == sequence.max_tokens"


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        (FULL, FULL.replace("==", ">=") + " - 1", "stopping.length-is-exact"),
        (FULL, FULL + " + 1", "stopping.length-is-exact"),
        (
            "self._counters.generated_tokens += 1",
            "self._counters.generated_tokens += 2",
            "stats.generated-tokens-add-up",
        ),
    ],
    ids=["one token short", "one token too many", "every token counted twice"],
)
def test_a_wrong_token_count_is_named_first(project, old, new, check):
    _change(project, "engine.py", old, new)
    told = summary(_report(project, "stopping", "stats", "lifecycle", "streaming", "tokens", "cancellation"))
    first = next(line for line in told.splitlines() if line.startswith("FAILED"))
    assert first.startswith(f"FAILED {check}: "), told
