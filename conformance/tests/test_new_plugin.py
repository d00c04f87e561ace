"""What ``anyengine plugin new`` writes keeps the contract as it is; broken, the suite names what broke it."""

import subprocess
import sysconfig
import venv
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
    """Written and, in an interpreter beside it, installed: a worker finds engines by entry points."""
    project = write_plugin("newcomer", tmp_path / "project")[0]
    venv.create(tmp_path / "venv", symlinks=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "newcomer.pth").write_text(f"{project / 'src'}\n")
    info = site / "anyengine_newcomer-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anyengine-newcomer\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[anyengine.engines]\nnewcomer = anyengine_newcomer:plugin\n")
    return project


def _python(project: Path) -> str:
    return str(project.parent / "venv" / "bin" / "python")


def _report(project: Path, *only: str) -> Report:
    """By the tests that came with it."""
    words = [word for name in only for word in ("--conformance-only", name)]
    file = project.parent / "report.json"
    command = [_python(project), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conformance.py", *words]
    done = subprocess.run([*command, "--conformance-report", file], cwd=project, capture_output=True, text=True)  # noqa: PLW1510
    assert file.exists(), done.stdout + done.stderr
    return read_report(file)


def test_the_command_and_the_tests_hold_it_to_the_same_settings(project, monkeypatch):
    """Both read `conformance.toml`."""
    monkeypatch.chdir(project)
    settings = project / "conformance.toml"
    file = project.parent / "command.json"
    command = [_python(project), "-m", "anyengine", "conformance", "run", "--config", settings.name, "--only", "seeds"]
    subprocess.run([*command, "--report", file], check=True, capture_output=True)
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


def test_in_a_worker_it_keeps_the_same(project):
    """One flag says that it is not safe for the application's process; nothing else has to follow."""
    _change(project, "plugin.py", "in_process=True", "in_process=False")
    report = _report(project, "streaming", "stats", "cancellation", "faults")
    assert report.good, summary(report)
    assert {result.outcome for result in report.results} <= {"passed", "unsupported", "not-run"}


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
            "self._generated_tokens += 1",
            "self._generated_tokens += 2",
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
