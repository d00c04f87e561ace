"""Where the processes of an engine run that has a core of its own, as vLLM's: what ``vllm_scatter.py`` compares.

A frontend is this program and each worker, a core what computes below them. ``PLACEMENTS`` says the ways.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Name → what it is.
PLACEMENTS = {
    "free": "all on all processors that this program may use",
    "apart": "frontends on a third of them, cores on the others",
    "pinned": "each on one",
    "first": "free, but ahead of all others (SCHED_FIFO)",
}


def place(how: str, processors: Sequence[int]) -> None:
    """Put this program, its workers and their engines' cores where `how` says, of those processors.

    Raises:
        PermissionError: this program may not go ahead of others.
    """
    this = psutil.Process()
    below = {process: bool(process.children()) for process in this.children(recursive=True)}
    frontends = [this.pid, *(process.pid for process, inner in below.items() if inner)]
    cores = [process.pid for process, inner in below.items() if not inner]
    third = max(1, len(processors) // 3)
    first = how == "first"
    if how == "pinned":
        for number, frontend in enumerate(frontends):
            _put(frontend, [processors[number % third]])
        for core in cores:
            _put(core, [processors[third % len(processors)]])
        return
    here, there = (processors[:third], processors[third:] or processors) if how == "apart" else (processors, processors)
    for frontend in frontends:
        _put(frontend, here, first=first)
    for core in cores:
        _put(core, there, first=first)


def _put(process: int, processors: Iterable[int], *, first: bool = False) -> None:
    """Put all threads of a process on those processors."""
    policy, priority = (os.SCHED_FIFO, 10) if first else (os.SCHED_OTHER, 0)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        for thread in sorted(int(each.name) for each in Path(f"/proc/{process}/task").iterdir()):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, set(processors))
                os.sched_setscheduler(thread, policy, os.sched_param(priority))
