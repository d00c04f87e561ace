"""Write ``anyengine/sync/engine.py`` from ``anyengine/engine.py``: the same methods and docstrings, without ``await``.

    python tools/make_sync.py

A test fails while the committed file differs from what this makes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sdk" / "src" / "anyengine"
HEAD = '''"""Generated from ``anyengine/engine.py`` by ``tools/make_sync.py``; do not edit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from anyengine.engine import Engine as AsyncEngine
from anyengine.sync.portal import Portal
from anyengine.sync.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self, Unpack

    from anyengine.backend import BackendInfo, EnginePlugin
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.errors import AnyEngineError
    from anyengine.hub import ModelFiles
    from anyengine.outputs import Completion, Embedding, Score
    from anyengine.quantization import Calibration
    from anyengine.request import GenerateRequest, Message, Prompt, RequestOptions
    from anyengine.stats import EngineStats

__all__ = ["Engine"]


class Engine:
    """A loaded model in some inference engine; see :class:`anyengine.Engine`. Safe to call from any thread."""

    def __init__(self, engine: AsyncEngine, portal: Portal) -> None:
        self._engine = engine
        self._portal = portal
'''
LOAD = """
loading = AsyncEngine.load({arguments})
portal = Portal(partial(loading.__aexit__, None, None, None))
try:
    return cls(portal.call(loading.__aenter__), portal)
except BaseException:
    portal.close()
    raise
"""
QUANTIZE = """
portal = Portal()
try:
    return portal.call(partial(AsyncEngine.quantize, {arguments}))
finally:
    portal.close()
"""
TAIL = '''
    def close(self) -> None:
        """Release everything; open requests end with reason ``abort``. Idempotent."""
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
'''


def passed(arguments: ast.arguments, *, skip: int) -> str:
    """The call's arguments that hand every parameter on."""
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args][skip:]]
    names += [f"{a.arg}={a.arg}" for a in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join(names)


def without_await(docstring: str) -> str:
    """The docstring as the sync twin has it."""
    for old, new in {
        "``async with": "``with",
        "= await ": "= ",
        "``await ": "``",
        " (from the awaited or entered result)": "",
    }.items():
        docstring = docstring.replace(old, new)
    return docstring


def synchronous(method: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.FunctionDef:
    """One method of the async class as its sync twin."""
    decorators = {ast.unparse(d) for d in method.decorator_list}
    docstring = [ast.Expr(ast.Constant(without_await(doc)))] if (doc := ast.get_docstring(method, clean=False)) else []
    skip = 0 if "staticmethod" in decorators else 1
    call, returns = f"self._engine.{method.name}", method.returns
    if "overload" in decorators:
        body = "..."
    elif "property" in decorators:
        body = f"return {call}"
    elif method.name == "load":
        body, returns = LOAD.format(arguments=passed(method.args, skip=1)), ast.Name("Self")
    elif method.name == "stream":
        body = f"return Stream(self._portal, {call}({passed(method.args, skip=skip)}))"
    elif "staticmethod" in decorators:
        body = QUANTIZE.format(arguments=passed(method.args, skip=skip))
    else:
        arguments = passed(method.args, skip=skip)
        body = f"return self._portal.call({f'partial({call}, {arguments})' if arguments else call})"
    return ast.FunctionDef(
        name=method.name,
        args=method.args,
        body=[*docstring, *ast.parse(body.strip()).body] if body.strip() != "..." else ast.parse("...").body,
        decorator_list=method.decorator_list,
        returns=returns,
        type_params=[],
        lineno=0,
    )


def make() -> str:
    """The source text of ``anyengine/sync/engine.py``."""
    tree = ast.parse((PACKAGE / "engine.py").read_text())
    engine = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Engine")
    methods = [
        synchronous(node)
        for node in engine.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")
        if node.name != "close"
    ]
    body = "\n\n".join(ast.unparse(method) for method in methods)
    indented = "".join(f"    {line}\n" if line else "\n" for line in body.splitlines())
    source = f"{HEAD}\n{indented}{TAIL}"
    ruff = [sys.executable, "-m", "ruff"]
    quiet = ["--quiet", "--stdin-filename", str(PACKAGE / "sync" / "engine.py")]
    fixed = subprocess.run(
        [*ruff, "check", "--fix-only", *quiet], input=source, capture_output=True, text=True, check=True
    )
    return subprocess.run(
        [*ruff, "format", *quiet], input=fixed.stdout, capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    (PACKAGE / "sync" / "engine.py").write_text(make())
