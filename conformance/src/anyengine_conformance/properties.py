"""Hypothesis for asynchronous checks."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck

from anyengine_conformance.violation import Violation, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from hypothesis.strategies import SearchStrategy

    from anyengine_conformance.context import Context

__all__ = ["given"]

T = TypeVar("T")
_EXPLORE = 5


async def given(
    context: Context, strategy: SearchStrategy[T], holds: Callable[[T], Awaitable[None]], examples: int
) -> None:
    """See :meth:`anyengine_conformance.context.Context.given`.

    Hypothesis calls plain functions, so it runs in a thread of its own and hands each example to the event loop.
    """
    loop = asyncio.get_running_loop()
    left = threading.Event()
    certify = context.profile == "certify"

    async def one(example: T) -> None:
        try:
            await holds(example)
        except Violation as violation:
            violation.example = shown(example)
            violation.asked = violation.asked or context.calls
            raise
        except Exception:
            context.example = shown(example)
            raise

    @hypothesis.seed(context.seed)
    @hypothesis.settings(
        max_examples=examples if certify else examples * _EXPLORE,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(cast("Iterable[HealthCheck]", HealthCheck)),
    )
    @hypothesis.given(strategy)
    def run(example: Any) -> None:
        if left.is_set():
            raise SkipTest("left")  # hypothesis stops at once
        asyncio.run_coroutine_threadsafe(one(example), loop).result()

    try:
        await asyncio.to_thread(run)
    finally:
        left.set()
