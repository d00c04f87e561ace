"""The *simulated* TensorRT-LLM in a worker process, as an application runs the engine: loads, aborts, deaths."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
from anyengine.environments import add_environment
from anyengine.plugins import find_engines
from anyengine_conformance import Settings
from anyengine_conformance.progress import details
from anyengine_conformance.runner import Runner, select

FAMILIES = ("faults", "cancellation", "lifecycle", "errors")

#: What the interpreter of the worker runs first: there the simulation is installed.
STARTUP = """\
import importlib.util, json, sys
from pathlib import Path

tests = Path({tests!r})
name = "simulated_tensorrt_llm"
file = tests / name / "__init__.py"
specification = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
module = sys.modules[name] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)


class Patch:
    setattr = staticmethod(setattr)


module.install(Patch, json.loads((tests / "contract" / "1.2.1.json").read_bytes()))
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an environment whose TensorRT-LLM is the simulation."""
    if "trtllm" not in find_engines():
        pytest.skip("anyengine-trtllm is not installed here, only on the path: a worker finds engines by entry points")
    folder = tmp_path / "interpreter"
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "sitecustomize.py").write_text(STARTUP.format(tests=str(Path(__file__).parent)))
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path / "home"))
    add_environment("simulated", str(folder / "bin" / "python"))
    return "simulated"


@pytest.mark.timeout(600)
def test_what_a_worker_makes_of_it(environment: str, storyteller: Path) -> None:
    config: dict[str, Any] = {"model": str(storyteller), "environment": environment}
    runner = Runner(Settings(engine="trtllm", config=config, time_factor=6.0))
    try:
        runner.open()
        results = runner.run(select(FAMILIES)).results
    finally:
        runner.close()
    assert ["\n".join(details(result)) for result in results if not result.good] == []
    # Here nothing is left out for want of a worker.
    assert [result.id for result in results if result.outcome != "passed"] == ["errors.nothing-left-to-draw"]
