"""The command, as a person calls it."""

import json
import os
import subprocess
import sys
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
    assert "keeps what was checked" in page.read_text()  # a selection
    assert cli("report", report).exit_code == 0
    assert cli("diff", report, report).output == "every outcome is the same\n"


def test_the_command_of_a_result_keeps_the_probe_off(cli):
    result = cli("run", "reference", *ONE, "--no-probe", "--json")
    assert json.loads(result.output)["results"][0]["command"] == (
        "anyengine conformance run reference --no-probe --only streaming.terminal-is-last"
    )


def test_a_report_of_a_selection_is_no_badge(tmp_path: Path, cli):
    cli("run", "reference", *ONE, "--report", tmp_path / "r.json")
    result = cli("badge", tmp_path / "r.json")
    assert result.exit_code == 2
    assert "whole suite" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "name an ENGINE"),
        (["run", "nothing-like-this"], "no engine is named 'nothing-like-this'; installed are: "),
        (["run", "referense"], "did you mean 'reference'?"),
        (["run", "nothing-like-this", "--jobs", "2"], "no engine is named 'nothing-like-this'; installed are: "),
        (["run", "reference", "-o", "environment=nowhere"], "there is no environment 'nowhere'"),
        (["run", "reference", "--only", "nope"], "there is no family or check 'nope'; the families are "),
        (["run", "reference", "--only", "stopping.length-is-exac"], "; did you mean 'stopping.length-is-exact'? The "),
        (["run", "reference", "--seed", "3"], "--seed belongs to --profile explore"),
        (["run", "reference", "-o", "max_model_length=3"], "unknown field"),
        (["report", "/nowhere.json"], "cannot be read"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(cli, arguments: list[str], words: str):
    result = cli(*arguments)
    assert words in result.stderr
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_engine_that_is_there_and_cannot_be_loaded_is_an_error_of_the_check(cli):
    result = cli("run", "reference", *ONE, "--model", "no/such-model-here", "--json")
    found = json.loads(result.stdout)["results"]
    assert (result.exit_code, [each["outcome"] for each in found]) == (1, ["error"])


def test_a_third_partys_factory_is_run_by_its_configuration(tmp_path: Path, cli):
    file = tmp_path / "conformance.toml"
    file.write_text('[subject]\nengine = "mine"\nfactory = "anyengine_conformance.simulated:SimulatedPlugin"\n')
    result = cli("run", "--config", file, *ONE, "--json")
    report = json.loads(result.output)
    assert (result.exit_code, report["subject"]["engine"]) == (0, "mine")
    assert report["results"][0]["command"].startswith(f"anyengine conformance run --config {file}")


def test_where_a_factory_keeps_the_engine_from_a_worker_the_reason_names_it(tmp_path: Path, cli):
    file = tmp_path / "conformance.toml"
    file.write_text('[subject]\nfactory = "anyengine_conformance.simulated:SimulatedPlugin"\n')
    report = json.loads(cli("run", "--config", file, "--only", "faults.next-load-works", "--json").output)
    assert [result["outcome"] for result in report["results"]] == ["not-run"]
    assert "install the plugin and name it instead, as `engine`" in report["results"][0]["reason"]


FACTORIES = """
import asyncio, os, time
from anyengine_conformance.simulated import SimulatedPlugin

number = 3

def raises():
    raise RuntimeError("no licence file")

def hangs():
    time.sleep(3600)

def needs(argument): ...

async def coroutine(): ...

def not_an_engine(config):
    return 3

class Undescribed(SimulatedPlugin):
    def describe(self):
        raise RuntimeError("no licence file")

class Endless(SimulatedPlugin):
    async def load(self, config, model):
        await asyncio.to_thread(time.sleep, 3600)

class Prints(SimulatedPlugin):
    async def load(self, config, model):
        print("loading, please wait")
        os.write(1, b"from the engine's own threads")
        return await super().load(config, model)
"""

IMPORTED = """
import factories
from anyengine.cli import main
main(prog_name="anyengine")
"""


@pytest.fixture
def factory(tmp_path: Path):
    """Runs one check with a factory, in a process of its own; what hangs must not keep that.

    A limit for loads counts from where the module is imported already, which takes as long as the machine likes.
    """
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "raises_on_import.py").write_text('raise RuntimeError("no licence file")')

    def run(place: str, *arguments: str, limit: float | None = None) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "conformance.toml"
        file.write_text(f'[subject]\nfactory = "{place}"\nload_timeout = {limit or 60.0}\n')
        program = ["-m", "anyengine"] if limit is None else ["-c", IMPORTED]
        command = [sys.executable, *program, "conformance", "run", "--config", str(file), *ONE, *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)

    return run


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("no_such_module:plugin", "cannot be imported: ModuleNotFoundError"),
        ("factories:nothing", "cannot be imported: AttributeError"),
        ("raises_on_import:plugin", "cannot be imported: RuntimeError: no licence file"),
        ("factories:raises", "cannot be called without arguments for a plugin: RuntimeError: no licence file"),
        ("factories:needs", "cannot be called without arguments for a plugin: TypeError"),
        ("factories:number", "gave a int; needed is an EnginePlugin"),
        ("factories:coroutine", "gave a coroutine; needed is an EnginePlugin"),
        ("factories:Undescribed", "raised RuntimeError: no licence file, when it was asked for the plugin"),
    ],
)
def test_a_factory_that_gives_no_plugin_is_misuse_in_one_line(factory, place: str, words: str):
    done = factory(place)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"subject.factory: {place} {words}" in done.stderr


def test_a_factory_that_hangs_is_misuse_in_one_line(factory):
    done = factory("factories:hangs", limit=0.5)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "subject.factory: factories:hangs had not ended after 0.5 s" in done.stderr


@pytest.mark.parametrize(
    ("place", "limit", "words"),
    [
        ("factories:not_an_engine", None, "gave a int for a configuration; needed is an awaitable of an Engine"),
        # It is described within the limit, and not loaded.
        ("factories:Endless", 3.0, "loading the variant 'default' had not ended after 3 s"),
    ],
)
def test_a_factory_whose_engine_does_not_load_is_an_error_of_the_check(
    factory, place: str, limit: float | None, words: str
):
    done = factory(place, limit=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout


def test_what_an_engine_prints_does_not_mix_with_the_report(factory):
    done = factory("factories:Prints", "--json")
    assert json.loads(done.stdout)["results"][0]["outcome"] == "passed", done.stderr
    assert "please wait" not in done.stderr
