"""conformance.toml, xfails.toml and reports: what is malformed is refused with file, key and what is allowed."""

import datetime as dt
import json
import re
import subprocess
from html import escape
from pathlib import Path

import pytest
from anyengine import InvalidConfig
from anyengine.environments import DescribedEngine
from anyengine_conformance import environment
from anyengine_conformance.badge import badge
from anyengine_conformance.check import all_checks
from anyengine_conformance.diff import compare
from anyengine_conformance.html import MEANINGS, render
from anyengine_conformance.progress import summary
from anyengine_conformance.report import BadReport, read_report, signed, write_report
from anyengine_conformance.results import OUTCOMES, Report
from anyengine_conformance.settings import ExpectedFailure, Settings, read_expected_failures, read_settings
from anyengine_conformance.subject import Garage, target_of
from anyengine_conformance.violation import logged, without_places
from msgspec.structs import replace

ENTRY = 'id = "streaming.terminal-is-last"\nreason = "r"\nlink = "l"\n'


def _file(folder: Path, text: str) -> Path:
    file = folder / "file.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[subject", "is no TOML"),
        ("", "subject.engine or subject.factory"),
        ("[subjects]\nengine='a'", r"\[subjects\] is unknown; allowed are subject, config"),
        ("[subject]\nengine='a'\nspeed=3", "subject.speed is unknown; allowed are engine, factory"),
        ("[subject]\nengine=3", "subject.engine must be a text, not 3"),
        ("[subject]\nengine='a'\ntime_factor=0", "time_factor must be a number above 0"),
        ("[subject]\nfactory='a.b'", "module:name"),
        ("[subject]\nengine='a'\nsimulated='yes'", "subject.simulated must be true or false"),
        ("[subject]\nengine='a'\n[config]\nmax_model_length=3", "unknown field 'max_model_length'"),
        ("[subject]\nengine='a'\n[config]\nmax_model_len='3'", "max_model_len"),
        ("[subject]\nengine='a'\n[variants.nope]\nseed=1", "variants.nope is unknown"),
        ("[subject]\nengine='a'\n[tolerances]\nfp4=1.0", "tolerances.fp4 is unknown"),
    ],
)
def test_a_malformed_conformance_toml_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(InvalidConfig, match=words) as caught:
        read_settings(_file(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


def test_a_whole_conformance_toml_is_read(tmp_path: Path):
    text = """
        [subject]
        engine = "mine"
        model = "m"
        time_factor = 2
        xfails = "x.toml"
        [config]
        kv_cache = { block_size = 32 }
        [variants.small-context]
        max_model_len = 256
        [tolerances]
        bfloat16 = 0.2
    """
    settings = read_settings(_file(tmp_path, text))
    assert settings.config == {"model": "m", "kv_cache": {"block_size": 32}}
    assert settings.variants == {"small-context": {"max_model_len": 256}}
    assert (settings.time_factor, settings.xfails) == (2.0, tmp_path / "x.toml")


def test_what_goes_with_the_files_model_does_not_go_with_another(tmp_path: Path):
    text = """
        [subject]
        engine = "mine"
        model = "models/m"
        [variants.small-context]
        max_model_len = 256
        [variants.draft-model]
        speculative = { method = "draft_model", model = "models/m-draft" }
    """
    settings = read_settings(_file(tmp_path, text))
    same = settings.with_config({"model": "/there/models/m", "seed": 1})
    assert (same.variants, same.config["seed"]) == (settings.variants, 1)
    other = settings.with_config({"model": "models/other"})
    assert set(other.variants) == {"small-context"}
    assert "made for the model storyteller; for models/other" in Garage(target_of(other), other).lacks("draft-model")


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path):
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_settings(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[failure]]", r"only \[\[xfail\]\] tables"),
        ("[[xfail]]\nid='a.b'", r"xfail\[0\].reason is missing"),
        (f"[[xfail]]\n{ENTRY}", "exactly one of until and until_version"),
        (f"[[xfail]]\n{ENTRY}until='soon'", "until must be a date"),
        (f"[[xfail]]\n{ENTRY}until_version='x y'", "is no version"),
        (f"[[xfail]]\n{ENTRY.replace('streaming', 'dreaming')}until_version='1'", "there is no check"),
        (f"[[xfail]]\n{ENTRY}until_version='1'\n[[xfail]]\n{ENTRY}until_version='1'", "stands there twice"),
        (f"[[xfail]]\n{ENTRY}until_version='1'\nwhy='x'", r"xfail\[0\].why is unknown"),
    ],
)
def test_a_malformed_xfails_toml_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(InvalidConfig, match=words):
        read_expected_failures(_file(tmp_path, text))


def test_an_entry_expires_by_date_or_by_version():
    day = dt.date(2027, 3, 1)
    dated = ExpectedFailure(id="a.b", reason="r", link="l", until=day)
    assert dated.expired(dt.date(2027, 2, 28), "1") is None
    assert dated.expired(day, "1") == "expired on 2027-03-01"
    versioned = ExpectedFailure(id="a.b", reason="r", link="l", until_version="0.34")
    assert versioned.expired(day, "0.33.9") is None
    assert "this is 0.34.0" in str(versioned.expired(day, "0.34.0"))
    assert versioned.expired(day, None) is None


def test_an_expired_entry_stops_the_run_before_it_starts(make_runner):
    entry = ExpectedFailure(id="streaming.terminal-is-last", reason="r", link="l", until_version="0.5")
    with pytest.raises(InvalidConfig, match=r"expired with version 0\.5; this is 1\.0"):
        make_runner(expected={entry.id: entry}).open()


@pytest.fixture
def report(make_runner) -> Report:
    runner = make_runner()
    runner.open()
    return runner.run([made for made in all_checks() if made.id == "streaming.terminal-is-last"])


def test_a_report_comes_back_as_it_was_written(tmp_path: Path, report: Report):
    write_report(report, tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == report


@pytest.mark.parametrize("place", ["results.0.outcome", "subject.engine", "suite.profile", "duration"])
def test_a_report_edited_by_hand_is_refused(tmp_path: Path, report: Report, place: str):
    write_report(report, tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    node = content
    for part in parents:
        node = node[part]
    node[last] = {"outcome": "failed", "profile": "explore", "duration": 1.5, "engine": "other"}[last]
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(BadReport, match="changed after the suite wrote it"):
        read_report(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "2"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadReport):
        read_report(tmp_path / "r.json")


def test_the_page_escapes_what_an_engine_wrote(report: Report):
    nasty = replace(report.results[0], outcome="failed", seen="<script>alert(1)</script>")
    page = render(replace(report, results=[nasty]))
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert nasty.command in page


def test_the_page_calls_outcomes_everywhere_what_the_summary_calls_them(report: Report):
    results = [replace(report.results[0], id=f"streaming.{outcome}", outcome=outcome) for outcome in OUTCOMES]
    made = replace(report, results=results)
    counts = [f"1 {words}" for words, _ in OUTCOMES.values()]
    assert ", ".join(counts) in summary(made)
    chips, families = re.sub("<[^>]*>", "", render(made)).split("All checks")
    assert "\n".join(counts) in chips
    assert "\n".join(counts) in families
    wrong = {outcome: words for outcome, (words, good) in OUTCOMES.items() if not good}
    assert [outcome for outcome in wrong if f"{wrong[outcome]} streaming.{outcome}\n" not in chips] == []
    every = {outcome: words for outcome, (words, _) in OUTCOMES.items()}
    assert [outcome for outcome in every if f"\n{every[outcome]} streaming.{outcome}\n" not in families] == []
    assert f"\n{len(OUTCOMES)} checks\n" in chips
    assert [outcome for outcome in every if f"\n{every[outcome]}{escape(MEANINGS[outcome])}\n" not in families] == []


def test_the_page_tells_failures_of_a_family_first_and_what_is_code_as_code(report: Report):
    outcomes = ("passed", "not-run", "failed")
    results = [replace(report.results[0], id=f"streaming.{name}", outcome=name, advice="see `n`") for name in outcomes]
    results = [replace(result, reason="no `n` < 1") for result in results]
    page = render(replace(report, results=results))
    assert re.findall('<li data-outcome="(.*?)"', page) == ["failed", "passed", "not-run"]
    assert "no <code>n</code> &lt; 1" in page
    assert "<dd>see <code>n</code></dd>" in page


def test_the_page_says_when_and_by_what_in_a_humans_words(report: Report):
    made = replace(report, started="2026-11-30T10:59:03+02:00", environment=replace(report.environment, commit="abc"))
    page = re.sub("<[^>]*>", "", render(made))
    assert "2026-11-30 08:59 UTC" in page
    assert "anyengine at commit abc" in page


def test_only_a_whole_run_that_left_nothing_unproven_keeps_the_contract(report: Report):
    def headline(made: Report) -> str:
        return re.sub("<[^>]*>", "", render(made).split("</h1>")[0]).splitlines()[-1]

    whole = replace(report, suite=replace(report.suite, complete=True))
    known = replace(whole, results=[*whole.results, replace(whole.results[0], id="streaming.x", outcome="xfailed")])
    assert headline(whole) == "keeps the contract"
    assert headline(report) == "keeps what was checked"
    assert headline(known) == "keeps the contract but for 1 known failure"


def test_a_badge_needs_the_whole_suite_and_the_certified_profile(report: Report):
    with pytest.raises(BadReport, match="whole suite"):
        badge(report)
    whole = replace(report, suite=replace(report.suite, complete=True))
    assert "simulated: 1 passed" in badge(signed(whole))
    with pytest.raises(BadReport, match="certify"):
        badge(replace(whole, suite=replace(whole.suite, profile="explore")))


def test_a_report_of_a_simulation_says_so_wherever_it_is_shown(report: Report):
    made = replace(report, subject=replace(report.subject, simulated=True), suite=replace(report.suite, complete=True))
    assert "simulated 1.0 (simulated): as expected" in summary(made)
    assert "says nothing of the real one" in render(made)
    assert "simulated (simulated): 1 passed" in badge(signed(made))
    assert "says nothing of the real one" not in render(report)


def test_the_version_is_that_of_the_environment_that_the_engine_runs_in(make_runner, monkeypatch):
    monkeypatch.setattr(
        environment,
        "described_there",
        lambda engine, config: DescribedEngine(name=engine, engine_version=f"{engine} in {config.environment}"),
    )
    runner = make_runner(settings=Settings(engine="simulated", config={"environment": "there"}, load_timeout=60.0))
    runner.open()
    assert runner.report([], complete=False).subject.engine_version == "simulated in there"


def test_a_report_names_the_commit_of_the_suite(report: Report):
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    said = subprocess.run(git, capture_output=True, check=False)
    assert report.environment.commit == (said.stdout.decode().strip() or None)


def test_a_diff_shows_what_became_worse_first(report: Report):
    worse = replace(report, results=[replace(report.results[0], outcome="failed")])
    assert [(change.kind, change.old, change.new) for change in compare(report, worse)] == [
        ("worse", "passed", "failed")
    ]
    assert compare(worse, report)[0].kind == "better"
    assert compare(report, replace(report, results=[]))[0].kind == "worse"
    assert compare(report, report) == []


def test_reports_name_no_places_of_a_machine():
    call = "Engine.load(model='/home/me/small', lora={'a': '/tmp/x1/first'}) engine.generate('and/or /a/b')"
    told = "Engine.load(model='…/small', lora={'a': '…/first'}) engine.generate('and/or /a/b')"
    assert without_places(call) == told
    log = "its last words: /tmp/env/mine/bin/python3: No module named 'x'; https://example.invalid/a, and/or '/a/b c'"
    short = "its last words: …/python3: No module named 'x'; https://example.invalid/a, and/or '…/b c'"
    assert logged(log) == short
    assert logged("error:/home/me/x/y PYTHONPATH=/opt/a/b:/usr/c file:///tmp/d/e '/home/me/a/'") == (
        "error:…/y PYTHONPATH=…/b:…/c file://…/e '…/'"
    )
    no_places = "POST /v1/chat/completions, ~/models/a, /5 of them"
    assert logged(no_places) == no_places
