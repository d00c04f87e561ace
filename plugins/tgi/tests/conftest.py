"""The simulated TGI, as a server in this process and as a launcher on the path."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyengine.config import EngineConfig
from anyengine.hub import resolve_model
from anyengine_server.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import ModuleType

TESTS = Path(__file__).parent
MODELS = TESTS.parents[1] / "reference" / "src" / "anyengine_reference" / "models"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def simulated_tgi() -> ModuleType:
    """The module ``simulated_tgi.py``: test folders are not packages."""
    specification = importlib.util.spec_from_file_location("anyengine_tgi_simulated", TESTS / "simulated_tgi.py")
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def contract() -> dict[str, Any]:
    """Facts about TGI, made by ``tools/make_tgi_contract.py``."""
    return json.loads((TESTS / "contract" / "tgi-3.3.7.json").read_bytes())


@pytest.fixture(scope="session")
def storyteller() -> Path:
    return MODELS / "storyteller"


@pytest.fixture
def serve(simulated_tgi: ModuleType, storyteller: Path) -> Callable[..., Any]:
    """``async with serve(max_total_tokens=256) as (server, tgi)``: a simulated TGI in this process."""

    @asynccontextmanager
    async def start(*, piece: int = 1024, model: Path = storyteller, **limits: Any) -> AsyncGenerator[Any]:
        files = resolve_model(str(model), builtin={})
        backend = await simulated_tgi.reference.load(EngineConfig(model=str(model)), files)
        tgi = simulated_tgi.SimulatedTgi(backend, files, simulated_tgi.Limits(**limits), piece=piece)
        try:
            async with SimulatedServer(tgi.handle) as server:
                yield server, tgi
                assert server.errors == []
        finally:
            await backend.close()

    return start


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A simulated ``text-generation-launcher`` at the front of the path, and no variable that it would read."""
    return _launcher(tmp_path / "bin", monkeypatch)


def _launcher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    program = folder / "text-generation-launcher"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS / "simulated_tgi.py"}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program
