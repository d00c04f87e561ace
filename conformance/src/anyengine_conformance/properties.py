"""Hypothesis for asynchronous checks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
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
        await _in_thread(run)
    finally:
        left.set()


#: Calls for threads that have nothing to do.
_idle: list[SimpleQueue[Callable[[], None]]] = []


async def _in_thread(run: Callable[[], None]) -> None:
    """As :func:`asyncio.to_thread`, in a thread that the next one has too, unless it hangs.

    For each new thread hypothesis collects garbage, and looks through all that is left: for a tenth of a second.
    """
    ended: Future[None] = Future()
    ended.set_running_or_notify_cancel()  # who is cancelled here leaves, and the thread goes on
    calls = _idle.pop() if _idle else _started()

    def call() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 it belongs to who waits for it
            _idle.append(calls)
            ended.set_exception(error)
        else:
            _idle.append(calls)
            ended.set_result(None)

    calls.put(partial(copy_context().run, call))
    await asyncio.wrap_future(ended)


def _started() -> SimpleQueue[Callable[[], None]]:
    calls: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work() -> None:
        while True:
            calls.get()()

    threading.Thread(target=work, name="conformance-property", daemon=True).start()
    return calls
