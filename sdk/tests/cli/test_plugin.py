"""``anyengine plugin new``: what it writes works as it is."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

TOOLS = Path(sys.executable).parent


def install(name: str, folder: Path, target: Path) -> Path:
    """The interpreter of a new environment that has what is here, and the written package as an installer leaves it."""
    venv.create(target, symlinks=True)
    site = next((target / "lib").glob("python*/site-packages"))
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "mine.pth").write_text(f"{folder / 'src'}\n")
    module = f"anyengine_{name.replace('-', '_')}"
    info = site / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: anyengine-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[anyengine.engines]\n{name} = {module}:plugin\n")
    return target / "bin" / "python"


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


@pytest.fixture(scope="module")
def python(project, tmp_path_factory):
    return install(*project, tmp_path_factory.mktemp("interpreter") / "venv")


def run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


#: Of the conformance suite one family; the others run in that package's tests.
ITS_TESTS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--conformance-only", "streaming")


def test_its_own_tests_pass(project, python):
    run(project[1], python, *ITS_TESTS)


def test_in_a_worker_its_own_tests_pass_as_they_are(tmp_path, anyengine):
    folder = tmp_path / "project"
    assert anyengine("plugin", "new", "mine", "--directory", str(folder)).exit_code == 0
    file = folder / "src" / "anyengine_mine" / "plugin.py"
    before = file.read_text()
    file.write_text(before.replace("in_process=True", "in_process=False"))
    assert file.read_text() != before
    run(folder, install("mine", folder, tmp_path / "venv"), *ITS_TESTS)


def test_its_engine_is_asked_while_it_computes(project, python):
    """Its thread waits in a step; who asks does not, but for an abort, and the count is right before a token is out."""
    program = f"""
import threading
from queue import SimpleQueue
from anyengine_{project[0].replace("-", "_")}.engine import EchoEngine, EchoSequence

computing, go, said = threading.Event(), threading.Event(), SimpleQueue()

class Slow(EchoSequence):
    def next_token(self):
        computing.set()
        if not go.wait(30):
            raise TimeoutError("who asks waited for the step")
        return super().next_token()

def sequence(name, cls, prompt):
    emit = lambda token, reason: said.put((name, token, reason, engine.counters().generated_tokens))
    return cls(prompt, frozenset(), 1, 0, 0.0, 0, None, emit)

engine = EchoEngine(max_num_seqs=2)
engine.add("first", sequence("first", Slow, [7]))
computing.wait()
engine.add("second", sequence("second", EchoSequence, [8]))
print(engine.counters())
abort = threading.Thread(target=engine.abort, args=["first"])
abort.start()
abort.join(0.2)
print(abort.is_alive())
go.set()
abort.join()
print(said.get(), said.get())
engine.add("broken", sequence("broken", EchoSequence, []))
print(repr(said.get()[2]))
try:
    engine.add("late", sequence("late", EchoSequence, [9]))
except Exception as error:
    print(repr(error))
engine.abort("late")
engine.close()
"""
    died = "EchoStepError('a step failed: ZeroDivisionError: integer modulo by zero')"
    assert run(project[1], python, "-c", program).splitlines() == [
        "EchoCounters(running=1, waiting=0, prompt_tokens=1, generated_tokens=0)",
        "True",
        "('first', 7, 'length', 1) ('second', 8, 'length', 2)",
        died,
        died,
    ]


def test_it_is_formatted_and_passes_its_own_checks(project):
    run(project[1], TOOLS / "ruff", "format", "--check", "--no-cache", ".")
    run(project[1], TOOLS / "ruff", "check", "--no-cache", ".")


def test_it_is_typed(project):
    run(project[1], TOOLS / "pyright", "--pythonpath", sys.executable)


def test_once_it_is_installed_the_commands_find_it(project, python, tmp_path):
    name = project[0]
    command = [python, "-c", "from anyengine.cli import main; main()"]
    listed = json.loads(run(tmp_path, *command, "engines", name, "--json"))
    assert (listed["status"], listed["package"], listed["engine_version"]) == (
        "ready",
        f"anyengine-{name} 0.1.0",
        "0.1.0",
    )
    arguments = ["generate", "--engine", name, "--temperature", "0", "hello"]
    assert run(tmp_path, *command, *arguments) == "hello\n"


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
