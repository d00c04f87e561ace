"""The threads that share a large product: as many as there are processors, made when first needed."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["run", "thread_count"]


@functools.cache
def thread_count() -> int:
    """Return how many threads share a product: the processors that this process may use, at most 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the pool of a process; a forked child, which has no threads, makes its own."""
    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix=f"anyengine-reference-{process}")


def run(work: Callable[[int, int], object], count: int, *, split: bool) -> None:
    """Call ``work(first, last)`` for ranges that cover 0 to `count`, on several threads if `split`; all are done on
    return.
    """
    threads = min(thread_count(), count) if split else 1
    if threads <= 1:
        work(0, count)
        return
    pool = _pool(os.getpid())
    bounds = [count * index // threads for index in range(threads + 1)]
    waiting = [pool.submit(work, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    try:
        work(0, bounds[1])
    finally:
        for future in waiting:
            future.result()
