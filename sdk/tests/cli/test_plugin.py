"""``anyengine plugin new``: what it writes works as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module", params=["x2", "a-rather-long-name-for-an-engine"])
def project(request, tmp_path_factory):
    from anyengine.cli import main
    from click.testing import CliRunner

    folder = tmp_path_factory.mktemp("plugin") / "project"
    done = CliRunner().invoke(main, ["plugin", "new", request.param, "--directory", str(folder), "--json"])
    assert done.exit_code == 0
    written = json.loads(done.stdout)
    assert (written["name"], written["directory"]) == (request.param, str(folder))
    assert sorted(written["files"]) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return request.param, folder


def run(folder: Path, *command: str | Path, **variables: str) -> str:
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(project):
    # Of the conformance suite one family; the others run in that package's tests.
    run(
        project[1],
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--conformance-only", "streaming"),
    )


def test_it_is_formatted_and_passes_its_own_checks(project):
    run(project[1], TOOLS / "ruff", "format", "--check", "--no-cache", ".")
    run(project[1], TOOLS / "ruff", "check", "--no-cache", ".")


def test_it_is_typed(project):
    run(project[1], TOOLS / "pyright", "--pythonpath", sys.executable)


def test_once_it_is_installed_the_commands_find_it(project, tmp_path):
    name, folder = project
    # What an installer would write.
    info = tmp_path / f"anyengine_{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: anyengine-{name}\nVersion: 0.1.0\n")
    point = f"{name} = anyengine_{name.replace('-', '_')}:plugin"
    (info / "entry_points.txt").write_text(f"[anyengine.engines]\n{point}\n")
    path = os.pathsep.join([str(folder / "src"), str(tmp_path)])
    command = [sys.executable, "-c", "from anyengine.cli import main; main()"]
    listed = json.loads(run(tmp_path, *command, "engines", name, "--json", PYTHONPATH=path))
    assert (listed["status"], listed["package"], listed["engine_version"]) == (
        "ready",
        f"anyengine-{name} 0.1.0",
        "0.1.0",
    )
    arguments = ["generate", "--engine", name, "--temperature", "0", "hello"]
    assert run(tmp_path, *command, *arguments, PYTHONPATH=path) == "hello\n"


@pytest.mark.timeout(300)  # pip, on a machine that may have other things to do
def test_the_lines_of_its_readme_work_as_they_stand(tmp_path, anyengine):
    folder = tmp_path / "project"
    assert anyengine("plugin", "new", "mine", "--directory", str(folder)).exit_code == 0
    lines = (folder / "README.md").read_text().split("```sh\n")[1].split("```")[0].splitlines()
    _, install, _, generate, certify, tests = lines
    assert (install.split()[:2], generate.split()[:4]) == (
        ["pip", "install"],
        ["anyengine", "generate", "--engine", "mine"],
    )
    assert (certify, tests) == ("anyengine conformance run --config conformance.toml", "pytest")
    # One family of the suite; all of it runs in the tests of that package.
    lines[-2:] = [f"{certify} --only streaming --report report.json", f"{tests} -q --conformance-only streaming"]
    assert "\nit repeats this\n" in run(folder, "bash", "-ec", "\n".join(lines))
    report = json.loads((folder / "report.json").read_text())
    assert (report["subject"]["engine"], report["suite"]["profile"]) == ("mine", "certify")
    assert {result["outcome"] for result in report["results"]} <= {"passed", "unsupported"}


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a--b", "-a", "a-", "../a", "ä"])
def test_a_name_that_is_none_is_refused(anyengine, tmp_path, name):
    done = anyengine("plugin", "new", "--directory", str(tmp_path / "x"), "--", name)
    assert (done.exit_code, (tmp_path / "x").exists()) == (2, False)
    assert "is no name of an engine" in done.stderr


def test_the_name_of_an_installed_engine_is_refused(anyengine, tmp_path):
    done = anyengine("plugin", "new", "reference", "--directory", str(tmp_path / "x"))
    assert (done.exit_code, (tmp_path / "x").exists()) == (2, False)
    assert "anyengine-reference brings an engine of the name" in done.stderr


def test_the_name_of_another_installed_package_is_refused(anyengine, tmp_path):
    info = anyengine.folder / "anyengine_taken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anyengine-taken\nVersion: 1.0\n")
    done = anyengine("plugin", "new", "taken", "--directory", str(tmp_path / "x"))
    assert (done.exit_code, (tmp_path / "x").exists()) == (2, False)
    assert "a package anyengine-taken is installed already" in done.stderr


def test_a_folder_that_cannot_be_made_is_a_failure_in_one_line(anyengine, tmp_path):
    (tmp_path / "file").touch()
    done = anyengine("plugin", "new", "mine", "--directory", str(tmp_path / "file" / "x"))
    assert (done.exit_code, done.stderr.count("\n"), "Not a directory" in done.stderr) == (1, 1, True)


def test_a_folder_that_is_not_empty_is_left_alone(anyengine, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = anyengine("plugin", "new", "mine", "--directory", str(tmp_path))
    assert (done.exit_code, [path.name for path in tmp_path.iterdir()]) == (2, ["mine.txt"])


def test_the_folder_is_named_after_the_engine_if_nobody_says_otherwise(anyengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = anyengine("plugin", "new", "mine").stdout.splitlines()
    assert "anyengine-mine/src/anyengine_mine/plugin.py" in lines
    assert lines[-1].startswith("Next: cd anyengine-mine; ")
