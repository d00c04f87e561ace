"""The *simulated* LMDeploy in a worker process, as an application runs the engine: loads, aborts, deaths."""

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

#: Beside the faults, what a process more between reader and engine might change.
FAMILIES = {"turbomind": ("faults",), "pytorch": ("faults", "cancellation", "lifecycle")}

#: What the interpreter of the worker runs first: there LMDeploy is the simulation.
STARTUP = """\
import sys

sys.path.insert(0, {simulation!r})
from lmdeploy.simulation.install import install


class Patch:
    setattr = staticmethod(setattr)


install(Patch)
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an environment whose LMDeploy is the simulation."""
    if "lmdeploy" not in find_engines():
        pytest.skip(
            "anyengine-lmdeploy is not installed here, only on the path: a worker finds engines by entry points"
        )
    folder = tmp_path / "interpreter"
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    simulation = Path(__file__).parent / "simulated_lmdeploy"
    (site / "sitecustomize.py").write_text(STARTUP.format(simulation=str(simulation)))
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path / "home"))
    add_environment("simulated", str(folder / "bin" / "python"))
    return "simulated"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", FAMILIES)
def test_what_a_worker_makes_of_it(environment: str, storyteller: Path, backend: str) -> None:
    config: dict[str, Any] = {
        "model": str(storyteller),
        "environment": environment,
        "native": {"backend": backend},
    }
    runner = Runner(Settings(engine="lmdeploy", config=config, time_factor=6.0))
    try:
        runner.open()
        results = runner.run(select(FAMILIES[backend])).results
    finally:
        runner.close()
    assert ["\n".join(details(result)) for result in results if not result.good] == []
    # Here nothing is left out for want of a worker.
    assert [result.id for result in results if result.outcome == "not-run"] == []
