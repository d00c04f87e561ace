"""The command, as a person calls it."""

import json
from pathlib import Path

import pytest
from anyengine.cli import main
from click.testing import CliRunner, Result

ONE = ("--only", "streaming.terminal-is-last")


@pytest.fixture
def cli():
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["conformance", *map(str, arguments)])

    return call


def test_list_shows_every_check_as_data(cli):
    result = cli("list", "--only", "streaming", "--json")
    checks = json.loads(result.output)
    assert result.exit_code == 0
    assert {made["id"].partition(".")[0] for made in checks} == {"streaming"}
    assert {"id", "must", "advice", "tier", "needs", "variant", "deadline", "since", "tolerance"} == set(checks[0])


def test_a_run_ends_with_0_and_its_files_are_read_again(tmp_path: Path, cli):
    report, page = tmp_path / "r.json", tmp_path / "r.html"
    result = cli("run", "reference", *ONE, "--report", report, "--html", page)
    assert (result.exit_code, "as expected" in result.output) == (0, True)
    assert "keeps the contract" in page.read_text()
    assert cli("report", report).exit_code == 0
    assert cli("diff", report, report).output == "every outcome is the same\n"


def test_a_report_of_a_selection_is_no_badge(tmp_path: Path, cli):
    cli("run", "reference", *ONE, "--report", tmp_path / "r.json")
    result = cli("badge", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "whole suite" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "name an ENGINE"),
        (["run", "nothing-like-this", *ONE], "no engine is named"),
        (["run", "reference", "--only", "nope"], "there is no family or check 'nope'"),
        (["run", "reference", "--seed", "3"], "--seed belongs to --profile explore"),
        (["run", "reference", "-o", "max_model_length=3"], "unknown field"),
        (["report", "/nowhere.json"], "cannot be read"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(cli, arguments: list[str], words: str):
    result = cli(*arguments)
    assert words in result.output
    assert result.exit_code == (1 if "nothing-like-this" in arguments else 2)


def test_a_third_partys_factory_is_run_by_its_configuration(tmp_path: Path, cli):
    file = tmp_path / "conformance.toml"
    file.write_text('[subject]\nengine = "mine"\nfactory = "anyengine_conformance.simulated:SimulatedPlugin"\n')
    result = cli("run", "--config", file, *ONE, "--json")
    report = json.loads(result.output)
    assert (result.exit_code, report["subject"]["engine"]) == (0, "mine")
    assert report["results"][0]["command"].startswith(f"anyengine conformance run --config {file}")


def test_a_factory_that_is_not_there_is_misuse(tmp_path: Path, cli):
    file = tmp_path / "conformance.toml"
    file.write_text('[subject]\nfactory = "no_such_module:plugin"\n')
    result = cli("run", "--config", file, *ONE)
    assert result.exit_code == 2
    assert "cannot be imported" in result.output
