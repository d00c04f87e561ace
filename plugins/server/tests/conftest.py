"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from anyengine.hub import resolve_model

MODELS = Path(__file__).parents[2] / "reference" / "src" / "anyengine_reference" / "models"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def storyteller() -> Path:
    return MODELS / "storyteller"


@pytest.fixture(scope="session")
def files(storyteller: Path):
    """The storyteller as a plugin gets it."""
    return resolve_model(str(storyteller), builtin={})


@pytest.fixture
def open_sockets():
    """How many sockets this process has open (Linux)."""

    def count() -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            except OSError:
                continue
        return found

    return count
