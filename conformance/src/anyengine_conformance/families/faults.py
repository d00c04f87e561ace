"""Faults: a worker that dies or hangs ends every request with a typed error, in time, and leaves nothing.

Where the engine runs in the application's process there is no worker to kill, and these checks say nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from anyengine import EngineDied, EngineUnresponsive, InvalidConfig
from anyengine.worker.supervisor import descendants, is_running

from anyengine_conformance.at_once import begun
from anyengine_conformance.check import OWN, check, family

if TYPE_CHECKING:
    from anyengine import Engine

    from anyengine_conformance.context import Context

family("faults", "Faults")

_ADVICE = "run it by its name, so that the SDK's worker runs it: deaths and hangs are the SDK's to find"
_STREAMS = 3
#: Seconds in which a death, and a hang, have to be known.
_DEATH = 1.0
_HANG = 10.0


class _Seen:
    """What a fault did to an engine.

    Attributes:
        ends: what each open request ended with.
        seconds: until the last of them ended.
        calls: what ``stats`` and ``health`` raised afterwards.
        left: processes of the worker that are still there after ``close``.
        words: of the first error.
    """

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.seconds = 0.0
        self.calls: dict[str, str] = {}
        self.left: list[int] = []
        self.words = ""
        self.status: int | None = None


async def _read(engine: Engine, options: dict[str, Any], came: asyncio.Event) -> None:
    try:
        async with engine.stream("Once upon a time", **options) as stream:
            async for _ in stream:
                came.set()
    finally:
        came.set()  # there is nothing to wait for any more


async def _ended(call: Any) -> BaseException | None:
    try:
        await call
    except Exception as error:  # noqa: BLE001 it is what is looked at
        return error
    return None


def _processes(engine: Engine) -> list[int]:
    return [] if engine.pid is None else [engine.pid, *descendants(engine.pid)]


async def _left(pids: list[int]) -> list[int]:
    """Those that are still there; one that was killed is given a moment to end."""
    for _ in range(100):
        if not any(map(is_running, pids)):
            break
        await asyncio.sleep(0.05)
    return [pid for pid in pids if is_running(pid)]


async def _suffer(t: Context, signum: int) -> _Seen:
    """Send the worker a signal while requests are open, and see what becomes of them."""
    if sys.platform != "linux":
        raise t.skip("processes are looked up as Linux shows them")
    seen = _Seen()
    try:
        loading = t.load(isolation="process")
        engine = await loading.__aenter__()
    except InvalidConfig as error:
        raise t.skip(f"it runs in the application's process only: {error.message}") from error
    closed = False
    try:
        pids = _processes(engine)
        options = {"ignore_eos": True} if "ignore_eos" in engine.capabilities.request else {}
        came = [asyncio.Event() for _ in range(_STREAMS)]
        async with begun(_read(engine, options, event) for event in came) as requests:
            await asyncio.gather(*(event.wait() for event in came))
            for request in requests:
                if request.done():
                    request.result()  # raises what it failed with before there was a fault
            t.asked(
                f"signal {signal.Signals(signum).name} to the worker of {engine.name}, with {_STREAMS} streams open"
            )
            os.kill(pids[1], signum)
            started = time.monotonic()
            done, late = await asyncio.wait(requests, timeout=2 * _HANG)
            seen.seconds = time.monotonic() - started
            for request in late:
                request.cancel()
            errors = [request.exception() for request in done]
            seen.ends = [type(error).__name__ if error else "no error" for error in errors] + ["nothing"] * len(late)
            first = next((error for error in errors if error is not None), None)
            seen.words = str(first)
            seen.status = getattr(first, "exit_status", None)
            for name in ("stats", "health"):
                error = await _ended(getattr(engine, name)())
                seen.calls[name] = type(error).__name__ if error else "no error"
            await loading.__aexit__(None, None, None)
            closed = True
        seen.left = await _left(pids)
    finally:
        if not closed:
            await loading.__aexit__(None, None, None)
    return seen


async def _killed(t: Context) -> _Seen:
    return await t.once("faults.killed", lambda: _suffer(t, signal.SIGKILL))


async def _stopped(t: Context) -> _Seen:
    return await t.once("faults.stopped", lambda: _suffer(t, signal.SIGSTOP))


def _check_ends(t: Context, seen: _Seen, kind: str, seconds: float) -> None:
    t.equal(seen.ends, [kind] * _STREAMS, "what the open streams ended with")
    t.expect(seen.seconds < seconds, expected=f"an end within {seconds:.0f} s", seen=f"{seen.seconds:.2f} s")


@check(
    "faults.killed-worker-ends-every-request",
    must="When the worker is killed, every open request ends with `EngineDied` within a second.",
    advice=_ADVICE,
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def killed_worker_ends_every_request(t: Context) -> None:
    _check_ends(t, await _killed(t), EngineDied.__name__, _DEATH)


@check(
    "faults.killed-worker-tells-its-status",
    must="`EngineDied` has the worker's exit status, minus the number of the signal that ended it.",
    advice=_ADVICE,
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def killed_worker_tells_its_status(t: Context) -> None:
    t.equal((await _killed(t)).status, -signal.SIGKILL, "exit_status")


@check(
    "faults.killed-worker-is-told-by-stats-and-health",
    must="After the worker was killed `stats` and `health` raise `EngineDied`.",
    advice=_ADVICE,
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def killed_worker_is_told(t: Context) -> None:
    expected = dict.fromkeys(("stats", "health"), EngineDied.__name__)
    t.equal((await _killed(t)).calls, expected, "what the calls raised")


@check(
    "faults.dead-worker-leaves-no-process",
    must="After the worker was killed, or stood still, and the engine was closed, none of its processes is left.",
    advice="start processes as ordinary children, in no session of their own; the supervisor ends them all",
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def dead_worker_leaves_no_process(t: Context) -> None:
    t.equal((await _killed(t)).left, [], "processes that are left of a killed worker")
    t.equal((await _stopped(t)).left, [], "processes that are left of a worker that stood still")


@check(
    "faults.next-load-works",
    must="After a worker was killed, the next load works.",
    advice="keep no lock, port or shared memory that a killed process would not release",
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def next_load_works(t: Context) -> None:
    await _killed(t)
    async with t.load(isolation="process") as engine:
        answer = await engine.generate("Once upon a time", max_tokens=3)
    t.expect(len(answer.token_ids) > 0, expected="a token", seen=answer.token_ids)


@check(
    "faults.stopped-worker-ends-every-request",
    must="When the worker stands still, every open request ends with `EngineUnresponsive` within 10 seconds.",
    advice=_ADVICE,
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def stopped_worker_ends_every_request(t: Context) -> None:
    _check_ends(t, await _stopped(t), EngineUnresponsive.__name__, _HANG)


@check(
    "faults.closed-engine-leaves-no-process",
    must="After `close` none of the worker's processes is left.",
    advice="end what you start in `close`; what is left is killed, and its memory with it",
    tier="extension",
    variant=OWN,
    deadline=120,
)
async def closed_engine_leaves_no_process(t: Context) -> None:
    try:
        async with t.load(isolation="process") as engine:
            pids = _processes(engine)
    except InvalidConfig as error:
        raise t.skip(f"it runs in the application's process only: {error.message}") from error
    t.equal(await _left(pids), [], "processes that are left")
