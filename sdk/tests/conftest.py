"""Shared by the SDK's tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
