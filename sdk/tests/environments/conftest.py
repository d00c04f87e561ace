"""Interpreters with a simulated engine, and packages that pip installs in no time."""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import anyengine
import pytest
from anyengine.environments import environments

#: An engine that is there to be found. ``{step}`` is what its variant ``stalls`` installs.
ENGINE = """
from anyengine.backend import EngineDescription, EnginePlugin, EnvironmentVariant, PipStep
from anyengine.capabilities import Capabilities

print("noise of a plugin")

class Plugin(EnginePlugin):
    def describe(self):
        return EngineDescription(
            name="simulated",
            plugin_version="1.0",
            engine_version="1.0",
            unavailable={unavailable!r},
            capabilities=Capabilities(sampling=frozenset({{"seed", "min_p", "top_k"}})),
            weights=("*.safetensors", "*.gguf"),
            environments={{
                "plain": EnvironmentVariant(python=">=3.11", steps=(), tested="in the SDK's tests"),
                "stalls": EnvironmentVariant(python=">=3.11", steps=(PipStep(({step!r},)),)),
                "old": EnvironmentVariant(python="<3.11", steps=()),
                "elsewhere": EnvironmentVariant(python=">=3.11", steps=(), platform="amiga"),
            }},
        )

    async def load(self, config, model):
        raise NotImplementedError

plugin = Plugin()
"""
ENTRY_POINT = "[anyengine.engines]\nsimulated = simulated_engine:plugin\n"
#: What makes everything that this interpreter has importable in another one of the same version.
OURS = "".join(
    f"{path}\n"
    for path in dict.fromkeys([str(Path(anyengine.__file__).parents[1]), sysconfig.get_path("purelib"), *sys.path])
    if path and not path.startswith(sys.base_prefix)
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The folder of the environments: never the user's own."""
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "environments"


@pytest.fixture
def names():
    return lambda: [environment.name for environment in environments()]


class Interpreter:
    """A virtual environment without pip, whose packages a test writes."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.packages = next((folder / "lib").glob("python*/site-packages"))

    def ours(self):
        """Let it find all that is installed here."""
        (self.packages / "ours.pth").write_text(OURS)
        return self

    def engine(self, unavailable=None):
        """Install the simulated engine."""
        source = ENGINE.format(unavailable=unavailable, step="nothing")
        (self.packages / "simulated_engine.py").write_text(source)
        info = self.packages / "anyengine_simulated-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anyengine-simulated\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(ENTRY_POINT)
        return self

    def other_sdk(self, answer):
        """Install an anyengine that describes itself like this."""
        package = self.packages / "anyengine" / "worker"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"print({json.dumps(answer)!r})")
        return self


@pytest.fixture
def interpreter(tmp_path):
    made = iter(range(100))
    return lambda: Interpreter(tmp_path / f"interpreter-{next(made)}")


def write_wheel(folder, name, version, files):
    """A wheel with these files, and nothing that it depends on."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


#: A package whose build says that it began, waits to be told how to go on, and makes a wheel.
BACKEND = """
import os, sys
sys.path.insert(0, {here!r})
from conftest_wheels import write_wheel
from pathlib import Path

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    began = open({began!r}, "w")  # kept open: its reader sees when this process ends
    began.write("building\\n")
    began.flush()
    with open({go!r}) as go:
        word = go.read()
    if word == "full":
        raise OSError(28, "No space left on device")
    return write_wheel(Path(wheel_directory), "stalls", "1.0", {{"stalls.py": ""}}).name
"""


class Packages:
    """A folder of wheels for ``--from``: an SDK that is this one, and the simulated engine's plugin."""

    def __init__(self, folder: Path):
        self.folder = folder / "wheels"
        self.folder.mkdir()
        self._began, self._go = folder / "began", folder / "go"
        project = folder / "stalls"
        project.mkdir()
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "stalls"\nversion = "1.0"\n'
        )
        (project / "conftest_wheels.py").write_text("import zipfile\n" + _source(write_wheel))
        (project / "backend.py").write_text(BACKEND.format(here=str(project), began=str(self._began), go=str(self._go)))
        os.mkfifo(self._began)
        os.mkfifo(self._go)
        write_wheel(self.folder, "anyengine", importlib.metadata.version("anyengine"), {"ours.pth": OURS})
        self._step = f"stalls @ {project.as_uri()}"
        self.plugin()

    def plugin(self, unavailable=None, ballast=0):
        """Write the plugin's wheel."""
        source = ENGINE.format(unavailable=unavailable, step=self._step)
        files = {
            "ballast": bytes(ballast),
            "simulated_engine.py": source,
            "anyengine_simulated-1.0.dist-info/entry_points.txt": ENTRY_POINT,
        }
        write_wheel(self.folder, "anyengine-simulated", "1.0", files)

    def wait_for_pip(self):
        """Wait until pip builds the package that stalls.

        Returns:
            A file that ends when the building process does.
        """
        began = self._began.open()
        assert began.readline() == "building\n"
        return began

    def go(self, word="go"):
        """Let the package that stalls be built."""
        self._go.write_text(word)


def _source(function):
    import inspect

    return inspect.getsource(function)


@pytest.fixture
def packages(tmp_path):
    return Packages(tmp_path)


@pytest.fixture
def creator(packages):
    """``creator(*arguments)``: ``anyengine env create simulated …`` as a program of its own, which prints progress."""
    started = []

    def start(*arguments, variant="stalls"):
        program = (
            "import sys\nfrom anyengine.cli import main\nfrom anyengine.cli.output import Output\n"
            "Output.note = lambda self, text: print(text, flush=True)\nmain(sys.argv[1:])"
        )
        command = ["env", "create", "simulated", "--from", str(packages.folder), "--name", "it", "--variant", variant]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def other_python():
    """``other_python(*versions)``: an interpreter of one of these, or a skip."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions", Path("/usr/bin")]

    def find(*versions):
        for version in versions:
            for root in roots:
                for path in [*root.glob(f"{version}.*/bin/python"), *root.glob(f"python{version}")]:
                    return str(path)
        pytest.skip(f"there is no Python {' or '.join(versions)} in {' or '.join(map(str, roots))}")
        return None

    return find
