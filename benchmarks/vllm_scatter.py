"""Why rounds of ``vllm_overhead.py`` scatter: the same round of vLLM alone, with its processes placed in several ways.

    ENVIRONMENT/bin/python benchmarks/vllm_scatter.py MODEL [--seconds 120] [--json out]

Rounds of one engine that differ in nothing take tens of percent more or less time. If that is due to where the two
processes are run, the frontend (this one) and the engine core, then one of these placements scatters less. They take
turns:

* ``free``, ``apart``, ``pinned``, ``first``: see ``placement.py``; the last is left out without the right to
* ``awake``: free, with an event loop that never sleeps

On a H200 none did (``results/h200/vllm-scatter.json``): rounds took 0.65 to 1.29 s each way, and the core's processor
was busy all the while, the frontend's not half of it. So the scatter is made within vLLM's core.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
from against_native import seconds
from environment import write
from placement import PLACEMENTS, place
from vllm_overhead import native


def placements(processors: list[int]) -> list[str]:
    """Those that can be had here."""
    names = [*PLACEMENTS, "awake"]
    try:
        place("first", processors)
    except PermissionError:
        print("first: left out, this program may not", flush=True)
        names.remove("first")
    return names


async def _awake() -> None:
    while True:  # noqa: ASYNC110 to be awake is what it is for
        await asyncio.sleep(0)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round, and processor seconds of the frontend and of the core, by placement."""
    subject = native(options)
    core = max(psutil.Process().children(recursive=True), key=lambda process: process.memory_info().rss)
    salts = itertools.count(1)
    for how in ("generate", "stream"):
        await seconds(getattr(subject, how), options, next(salts))
    gc.freeze()
    rounds: dict[str, list[tuple[float, float, float]]] = {}
    processors = sorted(os.sched_getaffinity(0))
    ends = monotonic() + options.seconds
    for name in itertools.cycle(placements(processors)):
        if monotonic() > ends:
            break
        place("free" if name == "awake" else name, processors)
        awake = asyncio.create_task(_awake()) if name == "awake" else None
        before = core.cpu_times()
        spent, used = await seconds(subject.generate, options, next(salts))
        after = core.cpu_times()
        if awake is not None:
            awake.cancel()
        of_core = after.user + after.system - before.user - before.system
        rounds.setdefault(name, []).append((spent, used, of_core))
    place("free", processors)  # the report counts those of this program
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
