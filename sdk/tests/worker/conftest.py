"""An interpreter with simulated engines, and engines loaded in workers of it."""

import subprocess
import sys
import sysconfig
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyengine
import pytest
from anyengine import Engine
from anyengine.place import Worker

NAMES = """
    hello lora slow fast exits crashes raises children hangs blocks core_dies floods unclosed never dies_in_load reports
    settled copies stalls dies_in_quantize deaf_in_load foreign mistyped blocks_in_load leaves_thread
    leaves_task exits_itself
""".split()  # noqa: SIM905 a list of names


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A virtual environment's interpreter that has our packages and the simulated engines."""
    folder = tmp_path_factory.mktemp("worker")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    packages = folder / "packages"
    packages.mkdir()
    source = Path(__file__).with_name("simulated_engines.py").read_text(encoding="utf-8")
    (packages / "simulated_engines.py").write_text(source, encoding="utf-8")
    info = packages / "simulated_engines-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: simulated-engines\nVersion: 1.0\n")
    points = "\n".join(f"{name.replace('_', '-')} = simulated_engines:{name}" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[anyengine.engines]\n{points}\n")
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    paths = [str(packages), sysconfig.get_path("purelib"), str(Path(anyengine.__file__).parents[1])]
    (site / "ours.pth").write_text("\n".join(paths) + "\n")
    return folder / "venv" / "bin" / "python"


@pytest.fixture
def worker(python, monkeypatch):
    """``async with worker(engine, **config) as engine``: loaded in a worker of that interpreter."""
    monkeypatch.setattr("anyengine.loading.choose_place", lambda engine, _config: Worker(engine, python))

    @asynccontextmanager
    async def loaded(engine, **config):
        async with Engine.load(engine, **config) as live:
            yield live

    return loaded


@pytest.fixture
def processes():
    """``processes(engine)``: pids of its supervisor and everything below it."""
    from anyengine.worker.supervisor import descendants

    def of(engine):
        pid = engine.pid
        return [pid, *descendants(pid)]

    return of


@pytest.fixture
def gone():
    """``gone(pids)``: those that are still there; one that was killed is given a moment to end."""

    from anyengine.worker.supervisor import is_running

    def left(pids, most=0):
        deadline = time.monotonic() + 30
        while len(found := [pid for pid in pids if is_running(pid)]) > most and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return left


@pytest.fixture
def descriptors():
    """``descriptors()``: how many this process has open."""
    return lambda: sum(1 for _ in Path("/proc/self/fd").iterdir())
