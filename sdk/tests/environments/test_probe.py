"""Interpreters that cannot be asked say why, and what mends it."""

import importlib.metadata
import sys

import pytest
from anyengine.environments import probe as probing
from anyengine.environments.probe import interpreter as identify
from anyengine.environments.probe import probe
from anyengine.environments.registry import resolved
from anyengine.errors import EnvironmentFailed
from anyengine.worker.protocol import PROTOCOL


def failure(python):
    with pytest.raises(EnvironmentFailed) as caught:
        probe(str(python))
    assert caught.value.field == "environment"
    return caught.value


def test_an_interpreter_says_what_it_has(interpreter):
    described = probe(str(interpreter().ours().engine().python))
    assert described.protocol == PROTOCOL
    assert described.sdk_version == importlib.metadata.version("anyengine")
    assert described.python_version == ".".join(map(str, sys.version_info[:3]))
    assert {"reference", "simulated"} <= {engine.name for engine in described.engines}
    assert described.find("simulated").weights == ("*.safetensors", "*.gguf")
    assert described.find("reference").weights == ("*.safetensors",)


def test_our_own_python_variables_do_not_reach_it(interpreter, monkeypatch, tmp_path):
    (tmp_path / "anyengine").mkdir()
    (tmp_path / "anyengine" / "__init__.py").write_text("raise SystemExit('found by PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe(str(interpreter().ours().python)).protocol == PROTOCOL


def test_one_that_is_not_there(tmp_path):
    assert failure(tmp_path / "python").message == f"there is no interpreter {tmp_path / 'python'}"


def test_a_folder(tmp_path):
    assert "is a folder, not an interpreter" in failure(tmp_path).message


def test_a_link_to_one_that_is_gone(tmp_path):
    (tmp_path / "python").symlink_to(tmp_path / "gone")
    assert f"leads to an interpreter that is gone: {tmp_path / 'gone'}" in failure(tmp_path / "python").message


def test_a_file_that_is_not_executable(tmp_path):
    (tmp_path / "python").touch()
    assert failure(tmp_path / "python").message == f"{tmp_path / 'python'} is not executable"


@pytest.mark.parametrize("text", ["#!/bin/sh\necho hello\n", "#!/bin/sh\nexit 3\n", "not a program"])
def test_a_program_that_is_no_python(tmp_path, text):
    (tmp_path / "python").write_text(text)
    (tmp_path / "python").chmod(0o755)
    assert "is not a Python interpreter" in failure(tmp_path / "python").message


def test_one_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(probing.ask, "__kwdefaults__", {"seconds": 0.2})
    (tmp_path / "python").write_text("#!/bin/sh\nsleep 1000\n")
    (tmp_path / "python").chmod(0o755)
    assert "did not answer within 0.2 s" in failure(tmp_path / "python").message


def test_one_that_is_too_old(other_python):
    assert "anyengine needs 3.11 or newer" in failure(other_python("3.10", "3.9", "3.8", "2.7")).message


def test_one_without_anyengine_is_told_how_to_get_it(interpreter):
    python = interpreter().python
    message = failure(python).message
    assert f"anyengine is not installed in {python}" in message
    assert f"run: {python} -m pip install " in message


def test_one_whose_worker_speaks_another_major_version(interpreter):
    there = interpreter().other_sdk({"protocol": [99, 1], "sdk_version": "9.9", "engines": "who knows"})
    message = failure(there.python).message
    assert f"(9.9) speaks worker protocol 99.1, the one here {PROTOCOL[0]}.{PROTOCOL[1]}" in message


def test_one_with_another_minor_version_and_fields_that_we_do_not_know(interpreter):
    there = interpreter().other_sdk({"protocol": [PROTOCOL[0], 99], "engines": [{"name": "x", "new": 1}], "new": 1})
    described = probe(str(there.python))
    assert (described.protocol, [engine.name for engine in described.engines]) == ((PROTOCOL[0], 99), ["x"])


def test_an_answer_that_is_none(interpreter):
    assert "does not describe itself as expected" in failure(interpreter().other_sdk({"hello": 1}).python).message


def test_one_whose_anyengine_fails_says_its_last_line(interpreter):
    there = interpreter().other_sdk({})
    (there.packages / "anyengine" / "worker" / "__main__.py").write_text("1 / 0")
    error = failure(there.python)
    assert "fails (exit status 1): ZeroDivisionError: division by zero" in error.message
    assert error.log_tail[-1] == "ZeroDivisionError: division by zero"


def test_a_plugin_that_cannot_be_imported_harms_no_other(interpreter):
    there = interpreter().ours().engine()
    (there.packages / "simulated_engine.py").write_text("import nothing_of_this_name")
    described = probe(str(there.python))
    assert "No module named 'nothing_of_this_name'" in described.find("simulated").broken
    assert described.find("reference").reason is None


def test_a_command_is_found_on_the_path_and_links_are_kept(interpreter, monkeypatch):
    python = interpreter().python
    monkeypatch.setenv("PATH", str(python.parent))
    assert resolved("python") == str(python)


def test_an_interpreter_of_another_version_is_known_by_it(other_python):
    python = other_python("3.12", "3.13", "3.10")
    assert not identify(python).version.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
