"""What several tests need."""

from __future__ import annotations

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
        for file in Path("/proc/self/fd").iterdir():
            try:
                found += str(file.readlink()).startswith("socket:")
            except OSError:
                continue
        return found

    return count
