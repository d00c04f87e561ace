"""Environments are made by pip, whole or not at all."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from anyengine.environments import (
    DescribedEngine,
    Environment,
    EnvironmentDescription,
    environments,
    remove_environment,
    store,
)
from anyengine.environments.create import _require, create_environment
from anyengine.environments.steps import Steps
from anyengine.errors import EnvironmentFailed, InvalidConfig

pytestmark = pytest.mark.timeout(300)  # pip, on a machine that may have other things to do


@pytest.fixture
def create(packages):
    """``create(**arguments)``: in this process, with the lines that say what happens."""

    def made(**arguments):
        lines = []
        given = {"source": str(packages.folder), "progress": lines.append} | arguments
        return create_environment("simulated", **given), lines

    return made


def left(home):
    return sorted(path.name for path in home.iterdir()) if home.exists() else []


def test_an_environment_is_made_once_and_removed(create, home, names):
    made, lines = create()
    assert (made.name, made.created, made.engine, made.variant) == ("simulated", True, "simulated", "plain")
    assert made.python == str(home / "simulated" / "venv" / "bin" / "python")
    assert "variant plain; others are: elsewhere, old, stalls" in lines
    assert "pip install" in (home / "simulated" / "create.log").read_text()
    assert not (home / "simulated" / "tmp").exists()
    again, lines = create(variant="plain", name="simulated")
    assert (again.python, lines) == (made.python, ["simulated is there already"])
    with pytest.raises(InvalidConfig, match="an environment 'simulated' already"):
        create(variant="stalls", name="simulated")
    assert remove_environment("simulated") is True
    assert (names(), left(home)) == ([], [])


def test_two_creators_make_it_once(creator, packages):
    first = creator()
    with packages.wait_for_pip():
        second = creator()
        assert second.stdout.readline() == "another process is making it; waiting for it\n"
        packages.go()
        outputs = first.communicate()[0], second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert ["it is there already" in output for output in outputs] == [False, True]
    assert [environment.variant for environment in environments()] == ["stalls"]


def test_after_a_killed_creator_pip_ends_too_and_the_next_one_begins_again(creator, packages, names):
    killed = creator()
    with packages.wait_for_pip() as pip:
        killed.kill()
        assert pip.read() == ""  # the building process has ended
    killed.wait()
    assert (names(), store.folder_of("it").is_dir()) == ([], True)
    again = creator(variant="plain")
    output, errors = again.communicate()
    assert (again.returncode, errors) == (0, "")
    assert "deleted what was left of it, which was never finished" in output
    assert names() == ["it"]


def test_a_creator_whose_predecessor_was_killed_waits_for_what_that_left_running(packages, tmp_path):
    # The lock is inherited by what runs pip: the folder is not deleted under its hands.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    store.folder_of("it").mkdir(parents=True)
    with store.locked("it") as lock:
        steps = Steps(store.folder_of("it"), lock, lambda line: None, engine="simulated")
        command = [sys.executable, "-c", f"open({str(fifo)!r}).read()"]
        running = threading.Thread(target=steps.run, args=("waiting", command))
        running.start()
        writer = fifo.open("w")  # returns when the command has opened it too
    with store.locked("it") as lock:
        assert lock is None
    writer.close()
    running.join()
    with store.locked("it") as lock:
        assert lock is not None


def test_an_interrupted_creation_leaves_nothing(creator, packages, home):
    interrupted = creator()
    with packages.wait_for_pip() as pip:
        interrupted.send_signal(signal.SIGINT)
        assert pip.read() == ""
    _, errors = interrupted.communicate()
    assert (interrupted.returncode, errors, left(home)) == (130, "\n", [])


def test_what_pip_cannot_install_is_said_with_its_log(create, packages, home):
    (packages.folder.parent / "stalls" / "backend.py").write_text("raise RuntimeError('nothing works')")
    with pytest.raises(EnvironmentFailed, match="pip install failed") as caught:
        create(variant="stalls", name="it")
    assert any("RuntimeError: nothing works" in line for line in caught.value.log_tail)
    assert 0 < len(caught.value.log_tail) <= 20
    assert f"all that was said is in {home / 'it.log'}" in caught.value.message
    assert left(home) == ["it.log"]
    assert "RuntimeError: nothing works" in (home / "it.log").read_text()


def test_an_engine_that_cannot_run_there_is_no_environment(create, packages, home, names):
    packages.plugin(unavailable="no GPU")
    with pytest.raises(EnvironmentFailed, match="simulated cannot run in it: no GPU"):
        create()
    assert (names(), left(home)) == ([], ["simulated.log"])


# -- a full disk ------------------------------------------------------------------------------------


def test_a_disk_that_a_command_finds_full_is_named(tmp_path):
    """Simulated: the command says what pip does on a full disk."""
    program = "import sys; print('ERROR: [Errno 28] No space left on device'); print('bye'); sys.exit(1)"
    with store.locked("it") as lock, pytest.raises(EnvironmentFailed) as caught:
        Steps(tmp_path, lock, print, engine="simulated").run("pip install", [sys.executable, "-c", program])
    assert f"the disk of {tmp_path} is full" in caught.value.message
    assert "pip install failed (exit status 1): ERROR: [Errno 28] No space left on device" in caught.value.message


def test_a_log_that_cannot_be_written_is_a_full_disk(tmp_path):
    (tmp_path / "create.log").symlink_to("/dev/full")
    with store.locked("it") as lock, pytest.raises(EnvironmentFailed, match=f"the disk of {tmp_path} is full"):
        Steps(tmp_path, lock, print, engine="simulated").run("pip install", [sys.executable, "-c", "print('hello')"])


@pytest.mark.parametrize(("mebibytes", "step"), [(2, "ensurepip"), (40, "pip install")])
def test_a_disk_that_is_full(packages, tmp_path, mebibytes, step):
    """Real: a small file system in a namespace of its own; the smaller has no room for pip, the other for a package."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("a file system cannot be mounted in a namespace of one's own here")
    packages.plugin(ballast=2**26)
    small = tmp_path / "small"
    small.mkdir()
    command = [sys.executable, "-m", "anyengine.cli", "env", "create", "simulated", "--from", str(packages.folder)]
    script = f'mount -t tmpfs -o size={mebibytes}m tmpfs "$0" && "$@"; status=$?; ls "$0/environments"; exit $status'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(small), *command],
        env=os.environ | {"ANYENGINE_HOME": str(small)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "simulated.log\n")
    assert f"the disk of {small / 'environments' / 'simulated'} is full" in done.stderr
    assert f"{step} failed" in done.stderr


# -- what is refused before anything is made --------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"name": "a/b"}, "environment", "is no name"),
        ({"variant": "a/b"}, "environment", "is no name"),
        ({"source": "/nowhere"}, "source", "neither a folder nor the word index"),
        ({"source": "~no-such-user/x"}, "source", "neither a folder nor the word index"),
        ({"source": "/"}, "source", "has neither anyengine nor anyengine-simulated"),
    ],
)
def test_arguments_that_are_wrong(create, home, arguments, field, message):
    with pytest.raises(InvalidConfig, match=message) as caught:
        create(**arguments)
    assert (caught.value.field, left(home)) == (field, [])


def test_a_place_whose_path_cannot_be_recorded(create, home, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    with pytest.raises(InvalidConfig, match="is not UTF-8") as caught:
        create(source=str(folder))
    assert (caught.value.field, left(home)) == ("source", [])


@pytest.mark.parametrize(
    ("engine", "arguments", "field", "message"),
    [
        ("reference", {"variant": "cuda"}, "variant", "no variant 'cuda'; it has: cpu"),
        ("no-such-engine", {}, "source", "anyengine-no-such-engine is not installed here"),
        ("No Engine", {"name": "it"}, "engine", "is no engine's name"),
    ],
)
def test_engines_that_are_unknown(home, engine, arguments, field, message):
    with pytest.raises(InvalidConfig, match=message) as caught:
        create_environment(engine, **arguments)
    assert (caught.value.field, left(home)) == (field, [])


def test_a_variant_that_does_not_fit_the_interpreter_or_the_machine(interpreter, monkeypatch, home, tmp_path):
    there = interpreter().engine()
    monkeypatch.syspath_prepend(str(there.packages))
    monkeypatch.setenv("PATH", str(tmp_path))  # no other interpreter to suggest
    monkeypatch.setattr("anyengine.environments.create.install_arguments", lambda engine, source: ())
    with pytest.raises(InvalidConfig, match=r"was tested on Python <3.11, and .* is 3\..*--python"):
        create_environment("simulated", variant="old")
    with pytest.raises(InvalidConfig, match="is for amiga"):
        create_environment("simulated", variant="elsewhere")
    assert left(home) == []


def test_an_interpreter_that_is_none(create, home, tmp_path):
    with pytest.raises(EnvironmentFailed, match="there is no interpreter"):
        create(python=str(tmp_path / "nothing"))
    assert left(home) == []


def test_a_folder_that_cannot_be_written(create, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailed, match=r"folder of the environments.*ANYENGINE_HOME can name another"):
        create()


@pytest.mark.parametrize("schemes", [[], ["int8-w8a8"]])
def test_an_environment_where_an_engine_only_quantises_is_good_for_that(schemes):
    engine = DescribedEngine(name="simulated", unavailable="not here", capabilities={"quantize": schemes})
    environment = Environment(
        name="tools",
        python="/nowhere",
        created=True,
        described=EnvironmentDescription(protocol=(1, 1), engines=(engine,)),
        fingerprint="",
    )
    if schemes:
        _require(environment, "simulated")
    else:
        with pytest.raises(EnvironmentFailed, match="cannot run in it: not here"):
            _require(environment, "simulated")


def test_an_environment_of_another_interpreter_is_not_what_was_asked_for(create, interpreter, tmp_path):
    made, _ = create()
    assert create(python=str(interpreter().python))[0].python == made.python  # made of the same one
    other = tmp_path / "python"
    other.write_text(
        f'#!/bin/sh\necho \'anyengine {{"python": "{other}", "version": "3.13.0", "platform": "linux"}}\'\n'
    )
    other.chmod(0o755)
    with pytest.raises(InvalidConfig, match="is there already, made of") as caught:
        create(python=str(other))
    assert caught.value.field == "python"


def test_an_environment_that_was_installed_from_elsewhere_is_not_what_was_asked_for(create, packages, tmp_path):
    made, _ = create()
    assert made.installed == tuple(
        str(packages.folder / f"{name}-py3-none-any.whl")
        for name in (f"anyengine-{importlib.metadata.version('anyengine')}", "anyengine_simulated-1.0")
    )
    (tmp_path / "link").symlink_to(packages.folder)
    for source in (str(packages.folder), str(tmp_path / "link"), None):
        assert create(source=source)[0].installed == made.installed
    other = shutil.copytree(packages.folder, tmp_path / "other")
    with pytest.raises(InvalidConfig, match=f"from {packages.folder}.* and not from {other}.*remove") as caught:
        create(source=str(other))
    assert caught.value.field == "source"
    assert create(source=None)[0].installed == made.installed


def test_an_environment_of_which_nobody_knows_what_it_was_installed_from_is_refused_where_that_matters(create):
    made, _ = create()
    record = store.folder_of("simulated") / "environment.json"
    document = json.loads(record.read_text())
    del document["installed"]  # as it was written before
    record.write_text(json.dumps(document))
    assert create(source=None)[0].python == made.python
    with pytest.raises(InvalidConfig, match=r"record does not say what it was installed from.*remove") as caught:
        create()
    assert caught.value.field == "source"


def test_an_interpreter_or_a_name_that_is_empty_is_not_the_default(create, home):
    for given, field in (({"python": ""}, "python"), ({"name": ""}, "environment")):
        with pytest.raises(InvalidConfig) as caught:
            create(**given)
        assert caught.value.field == field
    assert left(home) == []
