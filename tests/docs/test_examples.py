"""The examples run, and print what the README says."""

import ast
import os
import re
import sys
from pathlib import Path

import anyio
import pytest
from anyengine import AnyEngineError, Engine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


async def run(example: str) -> str:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / example)]
    done = await anyio.run_process(command, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_runs_without_a_warning(example: str) -> None:
    assert (await run(example)).strip() != ""


def test_the_program_in_the_readme_is_the_first_example() -> None:
    [program, *_] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    source = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert ast.unparse(ast.parse(program)) == without_docstrings(source)


async def test_the_readme_shows_what_the_program_prints() -> None:
    [shown] = re.findall(
        r"<!-- output: examples/quickstart.py -->\n```text\n(.*?)```$", README, re.MULTILINE | re.DOTALL
    )
    assert await run("quickstart.py") == shown


async def test_the_readme_shows_how_an_engine_refuses() -> None:
    [(dtype, name, message)] = re.findall(r'load\("reference", dtype="(\w+)"\)\n# (\w+): (.*)', README)
    with pytest.raises(AnyEngineError) as refusal:
        await Engine.load("reference", dtype=dtype)
    assert (type(refusal.value).__name__, refusal.value.message) == (name, message)
