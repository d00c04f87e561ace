"""Commands, in this process and as programs, and a simulated engine that they find through a real entry point."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from anyengine.cli import main
from click.testing import CliRunner, Result

#: Answers "Hello" unless a test says otherwise.
ENGINE = """
from anyengine.testing import ScriptedPlugin, make_model_folder
from pathlib import Path
from tokenizers import Tokenizer

folder = make_model_folder(Path(__file__).parent / "model")
encode = Tokenizer.from_file(str(folder / "tokenizer.json")).encode
def script(request):
    return encode("Hello").ids
def endless(request):
    while True:
        yield from encode("Ha").ids
plugin = ScriptedPlugin(script, str(folder), name="scripted")
slow = ScriptedPlugin(endless, str(folder), name="slow", step_seconds=0.01)
"""


@dataclass
class Commands:
    """Runs ``anyengine …``."""

    folder: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, arguments, input=stdin)

    def json(self, *arguments: str, stdin: str | None = None):
        done = self(*arguments, "--json", stdin=stdin)
        assert (done.exit_code, done.stderr) == (0, "")
        return json.loads(done.stdout)

    @property
    def engine(self) -> ModuleType:
        """The module of the simulated engine."""
        return sys.modules["some_scripted_engine"]

    @property
    def request(self):
        """What the simulated engine was asked last."""
        return self.engine.plugin.loaded[-1].requests[-1]

    @property
    def program(self) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of a program of its own."""
        command = [sys.executable, "-m", "anyengine.cli"]
        paths = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        return command, os.environ | {"PYTHONPATH": paths, "TERM": "dumb"}


@pytest.fixture
def anyengine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("engines")
    monkeypatch.setenv("ANYENGINE_HOME", str(folder / "home"))  # never the user's own environments
    (folder / "some_scripted_engine.py").write_text(ENGINE)
    info = folder / "some_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-engine\nVersion: 1.0\n")
    points = (
        "scripted = some_scripted_engine:plugin\nslow = some_scripted_engine:slow\nbroken = some_scripted_engine:no\n"
    )
    (info / "entry_points.txt").write_text(f"[anyengine.engines]\n{points}")
    monkeypatch.syspath_prepend(str(folder))
    yield Commands(folder)
    sys.modules.pop("some_scripted_engine", None)
