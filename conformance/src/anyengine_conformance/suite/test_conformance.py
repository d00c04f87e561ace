"""One test a check; the plugin :mod:`anyengine_conformance.pytest_plugin` brings the fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine_conformance.check import Check

__all__ = ["test_check"]


def test_check(conformance_check: Check, conformance_run: Callable[[Check], None]) -> None:
    """The engine does what the check says."""
    conformance_run(conformance_check)
