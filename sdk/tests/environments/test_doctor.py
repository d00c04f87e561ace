"""The doctor says what is wrong with an environment, and the command that mends it."""

import msgspec
import pytest
from anyengine.backend import EnvironmentVariant, PipStep
from anyengine.environments import add_environment, doctor
from anyengine.environments.doctor import Finding, examine


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", list)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", lambda: ["a GPU"])


@pytest.fixture
def no_torch(monkeypatch):
    """Importing the one that is installed beside us takes seconds."""
    monkeypatch.setattr(doctor._Examination, "_gpus", lambda self, installed: iter(()))


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(doctor._Examination, "_conflicts", lambda self, variant, installed: iter(()))


@pytest.fixture
def findings(no_torch):
    """``findings(interpreter, **fields)``: of an environment of it, by what they are about."""

    def of(there, **fields):
        environment = msgspec.structs.replace(add_environment("mine", str(there.python)), **fields)
        return {finding.about: finding for finding in examine(environment).findings}

    return of


def package(there, name, version, requires=()):
    info = there.packages / f"{name}-{version}.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


def variant(monkeypatch, *steps, python=">=3.11"):
    chosen = EnvironmentVariant(python=python, steps=steps, tested="somewhere")
    monkeypatch.setattr(doctor._Examination, "_variant", lambda self, described: chosen)


def test_an_environment_that_works_is_healthy(interpreter, no_gpu):
    there = interpreter().ours().engine()
    report = examine(add_environment("mine", str(there.python)))
    levels = {finding.about: finding.level for finding in report.findings}
    assert (report.environment, report.python) == ("mine", str(there.python))
    assert (levels["interpreter"], levels["anyengine"], levels["simulated"], levels["GPU"]) == (
        "ok",
        "ok",
        "ok",
        "note",
    )


def test_an_interpreter_that_is_gone(interpreter, no_gpu):
    there = interpreter().ours()
    environment = add_environment("mine", str(there.python))
    there.python.unlink()
    report = examine(environment)
    assert not report.healthy
    assert report.findings == (Finding("problem", "interpreter", f"there is no interpreter {there.python}"),)


def test_one_that_was_made_is_made_again(interpreter, findings, no_pip):
    there = interpreter().ours()
    found = findings(there, created=True, engine="simulated", variant="plain")["simulated"]
    assert (found.level, found.text) == ("problem", "its plugin is not installed there")
    assert found.mend == (
        "anyengine env remove --yes mine && anyengine env create simulated --variant plain --name mine"
    )


def test_an_anyengine_that_is_missing_and_the_line_that_installs_it(interpreter, no_gpu):
    there = interpreter().ours()
    environment = add_environment("mine", str(there.python))
    (there.packages / "ours.pth").unlink()
    found = examine(environment).findings[-1]
    assert (found.level, found.about) == ("problem", "anyengine")
    assert found.mend.startswith(f"{there.python} -m pip install ")


def test_an_engine_that_cannot_run(interpreter, findings, no_pip):
    there = interpreter().ours().engine(unavailable="no memory")
    found = findings(there, engine="simulated")["simulated"]
    assert (found.level, found.text) == (
        "problem",
        "anyengine-simulated 1.0, engine 1.0; cannot run: no memory",
    )


def test_packages_that_are_not_those_of_the_tested_set(interpreter, findings, no_pip, monkeypatch):
    there = interpreter().ours().engine()
    package(there, "some_thing", "1.5")
    variant(monkeypatch, PipStep(("some-thing==1.0", "pluggy>=0")), PipStep(("not-there==2",)))
    found = findings(there)["packages"]
    assert (
        found.text == "not those of the tested set: some-thing 1.5 (tested: ==1.0), not-there is missing (tested: ==2)"
    )
    assert found.mend == f"{there.python} -m pip install --no-deps some-thing==1.0 not-there==2"


def test_packages_that_are(interpreter, findings, no_pip, monkeypatch):
    variant(monkeypatch, PipStep(("pluggy>=0",)))
    found = findings(interpreter().ours(), variant="plain")["packages"]
    assert (found.level, found.text) == ("ok", "those of plain: somewhere")


def test_a_python_that_the_packages_were_not_tested_on(interpreter, findings, no_pip, monkeypatch):
    variant(monkeypatch, python="<3.11")
    assert findings(interpreter().ours())["python"].level == "problem"


def test_packages_that_conflict(interpreter, findings):
    there = interpreter().ours()
    package(there, "a_thing", "1.0", ["pluggy<0.1"])
    found = findings(there)["conflicts"]
    assert (found.level, "1.0 has requirement pluggy<0.1, but you have" in found.text) == ("problem", True)


def test_what_the_tested_set_installs_without_its_dependencies_may_conflict(interpreter, findings, monkeypatch):
    there = interpreter().ours()
    package(there, "a_thing", "1.0", ["pluggy<0.1"])
    variant(monkeypatch, PipStep(("a-thing==1.0",), no_deps=True))
    found = findings(there)["conflicts"]
    assert (found.level, found.text.endswith("(so in the tested set)")) == ("note", True)


# -- torch and GPUs ---------------------------------------------------------------------------------

TORCH = """
__version__ = "9.9"
class version: cuda = {cuda!r}
class cuda:
    device_count = staticmethod(lambda: {devices})
    is_available = staticmethod(lambda: {devices} > 0)
class zeros:
    def __init__(self, *_, **__): pass
    sum = lambda self: self
    def item(self): {kernel}
"""


@pytest.fixture
def torch_finding(interpreter):
    """``torch_finding(cuda, devices, kernel, variant)``: what is found of a simulated torch."""

    def found(cuda="13.0", devices=1, kernel="return 0", variant=None):
        there = interpreter().ours()
        (there.packages / "ours.pth").write_text("")
        package(there, "torch", "9.9")
        (there.packages / "torch.py").write_text(TORCH.format(cuda=cuda, devices=devices, kernel=kernel))
        environment = doctor_environment(there, variant)
        facts = {"torch": "9.9"}
        return list(doctor._Examination(environment)._gpus(facts))

    return found


def doctor_environment(there, variant):
    from anyengine.environments import Environment

    return Environment(name="mine", python=str(there.python), created=False, variant=variant)


def test_a_torch_that_sees_the_gpu(one_gpu, torch_finding):
    assert torch_finding() == [
        Finding("ok", "GPU", "a GPU"),
        Finding("ok", "torch", "9.9, for CUDA 13.0, sees 1 of 1 GPUs"),
    ]


def test_a_torch_without_cuda_beside_a_gpu(one_gpu, torch_finding):
    assert torch_finding(cuda=None, devices=0)[1] == Finding(
        "note", "torch", "9.9, without CUDA; the GPUs are not used by it"
    )


def test_a_torch_that_sees_no_gpu(one_gpu, torch_finding):
    assert torch_finding(devices=0)[1].text == (
        "9.9, for CUDA 13.0: it sees none of the GPUs; CUDA_VISIBLE_DEVICES may hide them"
    )


def test_a_torch_without_code_for_the_gpu(one_gpu, torch_finding):
    found = torch_finding(kernel="raise RuntimeError('no kernel image')")[1]
    assert (found.level, found.text) == ("problem", "9.9, for CUDA 13.0: RuntimeError: no kernel image")


def test_a_torch_that_crashes(one_gpu, torch_finding):
    found = torch_finding(kernel="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")[1]
    assert (found.level, "signal 11" in found.text) == ("problem", True)


def test_a_driver_that_is_too_old(one_gpu, interpreter):
    examination = doctor._Examination(doctor_environment(interpreter(), None))
    seen = doctor._Torch(version="9.9", cuda="13.0", driver_cuda=12040)
    [found] = examination._torch(seen, ["a GPU"])
    assert (found.level, found.text) == (
        "problem",
        "9.9, for CUDA 13.0, but the driver supports CUDA 12.4 at most: it has to be updated",
    )


def test_a_variant_for_cuda_without_a_driver(no_gpu, torch_finding):
    assert torch_finding(variant="cuda-12")[0] == Finding("problem", "GPU", "there is no NVIDIA driver here")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H200, 580.95.05, 143771 MiB, 4 MiB, 9.0'",
         ["NVIDIA H200, compute capability 9.0, 143771 MiB (4 MiB used), driver 580.95.05"]),
        ("echo 'NVIDIA-SMI has failed'; exit 9", []),
        ("echo 'A GPU, 1'", ["A GPU, compute capability ,  ( used), driver 1"]),
    ],
)  # fmt: skip
def test_what_nvidia_smi_says(tmp_path, monkeypatch, script, expected):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._gpus() == expected


def test_an_interpreter_that_has_become_something_else(interpreter, no_gpu):
    there = interpreter().ours()
    environment = add_environment("mine", str(there.python))
    there.python.unlink()
    there.python.write_text("#!/bin/sh\n")
    there.python.chmod(0o755)
    text = f"{there.python} does not answer as a Python interpreter does"
    assert examine(environment).findings == (Finding("problem", "interpreter", text),)


def test_what_an_interpreter_prints_when_it_ends_is_no_answer(interpreter, findings, no_pip):
    there = interpreter().ours().engine()
    (there.packages / "noise.pth").write_text("import atexit; atexit.register(print, 'bye')\n")
    environment = add_environment("other", str(interpreter().ours().python))
    told = doctor._Examination(msgspec.structs.replace(environment, python=str(there.python)))
    assert next(told.findings()).level == "ok"


def test_a_pip_that_fails_knows_of_no_conflicts(interpreter, findings):
    there = interpreter().ours().engine()
    (there.packages / "pip").mkdir()
    (there.packages / "pip" / "__init__.py").touch()
    (there.packages / "pip" / "__main__.py").write_text("raise SystemExit('no such thing')")
    package(there, "pip", "1.0")
    found = findings(there)["conflicts"]
    assert (found.level, found.text) == ("note", "pip check fails: no such thing")
