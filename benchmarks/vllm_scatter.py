"""Why rounds of ``vllm_overhead.py`` scatter: the same round of vLLM alone, with its processes placed in several ways.

    ENVIRONMENT/bin/python benchmarks/vllm_scatter.py MODEL [--seconds 120] [--json out]

Rounds of one engine that differ in nothing take tens of percent more or less time. If that is due to where the two
processes are run, the frontend (this one) and the engine core, then one of these placements scatters less. They take
turns:

* ``free``: both on all processors that this program may use
* ``apart``: the frontend on a third of them, the core on the others
* ``pinned``: each on one
* ``first``: free, but ahead of all others (``SCHED_FIFO``; left out without the right to)
* ``awake``: free, with an event loop that never sleeps
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import statistics
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import psutil
from against_native import seconds
from environment import write
from vllm_overhead import native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def place(process: int, processors: Iterable[int], *, first: bool = False) -> None:
    """Put all threads of a process on those processors."""
    chosen = set(processors)
    for thread in (int(each.name) for each in Path(f"/proc/{process}/task").iterdir()):
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile
            os.sched_setaffinity(thread, chosen)
            policy = os.SCHED_FIFO if first else os.SCHED_OTHER
            os.sched_setscheduler(thread, policy, os.sched_param(10 if first else 0))


def placements(core: int) -> dict[str, Callable[[], None]]:
    """Name → what brings it about."""
    every = sorted(os.sched_getaffinity(0))
    third = max(1, len(every) // 3)
    here = os.getpid()

    def both(of_frontend: list[int], of_core: list[int], *, first: bool = False) -> Callable[[], None]:
        def placed() -> None:
            place(here, of_frontend, first=first)
            place(core, of_core, first=first)

        return placed

    made = {
        "free": both(every, every),
        "apart": both(every[:third], every[third:]),
        "pinned": both(every[:1], every[third : third + 1]),
        "first": both(every, every, first=True),
        "awake": both(every, every),
    }
    try:
        made["first"]()
    except PermissionError:
        print("first: left out, this program may not", flush=True)
        del made["first"]
    return made


async def _awake() -> None:
    while True:  # noqa: ASYNC110 to be awake is what it is for
        await asyncio.sleep(0)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round, and processor seconds of the frontend and of the core, by placement."""
    subject = native(options)
    children = psutil.Process().children(recursive=True)
    core = max(children, key=lambda process: process.memory_info().rss)
    salts = itertools.count(1)
    for how in ("generate", "stream"):
        await seconds(getattr(subject, how), options, next(salts))
    gc.freeze()
    rounds: dict[str, list[tuple[float, float, float]]] = {}
    ends = monotonic() + options.seconds
    for name, placed in itertools.cycle(placements(core.pid).items()):
        if monotonic() > ends:
            break
        placed()
        awake = asyncio.create_task(_awake()) if name == "awake" else None
        before = core.cpu_times()
        spent, used = await seconds(subject.generate, options, next(salts))
        after = core.cpu_times()
        if awake is not None:
            awake.cancel()
        of_core = after.user + after.system - before.user - before.system
        rounds.setdefault(name, []).append((spent, used, of_core))
    await subject.close()
    return rounds


def main() -> None:
    """Measure, print, write."""
    options = _options()
    rounds = asyncio.run(measure(options))
    for name, found in rounds.items():
        spent, used, of_core = (list(values) for values in zip(*found, strict=True))
        mean, scatter = statistics.mean(spent), statistics.pstdev(spent) / statistics.mean(spent)
        print(
            f"{name:8} {len(spent):4} rounds of {mean:.3f} s, scatter {scatter:.1%}; processor seconds: "
            f"{statistics.mean(used):.3f} frontend, {statistics.mean(of_core):.3f} core"
        )
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "model")}
    write(options.json, engine="vllm", model=Path(options.model).name, settings=settings, rounds=rounds)


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="folder or hub id")
    made.add_argument("--seconds", type=float, default=120.0, help="for which rounds begin")
    made.add_argument("--concurrency", type=int, default=256)
    made.add_argument("--tokens", type=int, default=128)
    made.add_argument("--context", type=int, default=512)
    made.add_argument("--temperature", type=float, default=1.0)
    made.add_argument("--eager", action="store_true")
    made.add_argument("--json", type=Path)
    return made.parse_args()


if __name__ == "__main__":
    main()
