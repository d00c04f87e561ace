"""The plugin of ``docs/writing-a-plugin.md`` is the one in ``examples``, works, and is as short as the page says."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyengine
import pytest
from anyengine import Engine
from anyengine.backend import EnginePlugin
from anyengine.testing import EOS, ScriptedPlugin, make_model_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
FOLDER = ROOT / "examples" / "ngram-plugin"
BLOCK = re.compile(r"^(?:<!-- file: (\S+) -->\n)?```(\w*)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def shown() -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for file, language, code in BLOCK.findall(PAGE):
        if language != "sh":
            files.setdefault(file, []).append(code)
    return files


def test_every_block_names_its_file() -> None:
    assert sorted(shown()) == [
        "examples/extension.py",
        "examples/ngram-plugin/anyengine_ngram.py",
        "examples/ngram-plugin/conformance.toml",
        "examples/ngram-plugin/pyproject.toml",
        "examples/ngram-plugin/tests/test_ngram.py",
    ]


@pytest.mark.parametrize("file", sorted(shown()))
def test_the_blocks_of_a_file_are_the_file(file: str) -> None:
    assert "\n\n\n".join(shown()[file]) + "\n" == (ROOT / file).read_text(encoding="utf-8")


def test_it_is_under_150_lines() -> None:
    assert len((FOLDER / "anyengine_ngram.py").read_text(encoding="utf-8").splitlines()) < 150


def test_its_own_tests_pass() -> None:
    paths = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=FOLDER,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_commands_make_the_model_and_run_the_suite(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "plugin")
    [commands] = [code for _, language, code in BLOCK.findall(PAGE) if language == "sh" and "conformance run" in code]
    if path := os.environ.get("PYTHONPATH"):  # these tests' own
        commands = commands.replace("PYTHONPATH=.", f"PYTHONPATH=.:{path}")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-ec", f"{commands} --only streaming"],
        cwd=folder,
        env=os.environ | {"PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed      streaming." in done.stdout


def test_the_entry_point_is_a_plugin_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["anyengine.engines"].items()
    module, _, attribute = value.partition(":")
    plugin = runpy.run_path(str(FOLDER / f"{module}.py"))[attribute]
    assert isinstance(plugin, EnginePlugin)
    assert plugin.describe().name == name
    assert plugin.describe().plugin_version == project["version"]


async def test_many_requests_run_side_by_side(tmp_path: Path) -> None:
    plugin = runpy.run_path(str(FOLDER / "anyengine_ngram.py"))["plugin"]
    folder = make_model_folder(tmp_path / "model")
    (folder / "corpus.txt").write_text("a b c d e f\na c e\nb d f\n")
    async with Engine.load(plugin, folder) as engine:
        sampling = anyengine.SamplingParams(seed=5)
        alone = await engine.generate("a", sampling=sampling, max_tokens=30)
        together = await engine.generate(["a"] * 20, sampling=sampling, max_tokens=30)
        assert [answer.token_ids for answer in together] == [alone.token_ids] * 20


class TestExtension:
    @pytest.fixture
    def budget(self) -> dict[str, Any]:
        return runpy.run_path(str(ROOT / "examples" / "extension.py"))

    @pytest.fixture
    def plugin(self, tmp_path: Path) -> ScriptedPlugin:
        return ScriptedPlugin(lambda _: [72, 105], str(make_model_folder(tmp_path / "model")))

    async def test_it_counts_and_then_refuses(self, budget: dict[str, Any], plugin: ScriptedPlugin) -> None:
        counter = budget["Budget"](4)
        async with Engine.load(plugin, extensions=[counter]) as engine:
            answer = await engine.generate("x")
            assert (answer.token_ids, counter.left) == ([72, 105, EOS], 1)
            async with engine.stream("x") as stream:
                assert [token async for chunk in stream for token in chunk.token_ids] == [72, 105, EOS]
            assert counter.left == -2
            with pytest.raises(budget["Spent"]):
                await engine.generate("x")

    async def test_a_stream_that_is_left_ends_in_the_engine(
        self, budget: dict[str, Any], plugin: ScriptedPlugin
    ) -> None:
        async with Engine.load(plugin, extensions=[budget["Budget"](4)]) as engine:
            async with engine.stream("x", ignore_eos=True) as stream:
                async for _ in stream:
                    break
            assert (await engine.stats()).running == 0
