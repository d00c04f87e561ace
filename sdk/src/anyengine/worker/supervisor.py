"""The small process between application and worker: whichever of the two dies, nothing of the engine stays behind.

It starts the worker, tells the application the moment it ends, and ends every process that the engine has left. Where
the application goes away it ends all of them at once. An engine's own children (vLLM's engine core, tensor-parallel
ranks) become children of this process when the worker dies, so they are found (``PR_SET_CHILD_SUBREAPER``, Linux).

Only the standard library, and no threads: it must work whatever state the engine is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

__all__ = [
    "adopt_orphans",
    "descendants",
    "die_with_parent",
    "end_all",
    "is_running",
    "process_state",
    "readable",
    "supervise",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
#: Seconds that processes are given to be gone after SIGKILL; a driver may hold one for a while.
_PATIENCE = 20.0


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def die_with_parent(parent: int, signum: int) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before this was called
        os.kill(os.getpid(), signum)


def adopt_orphans() -> None:
    """Become the parent of what processes below this one leave behind, so that it is found (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def supervise(lifeline: int, parent: int, command: list[str], keep: tuple[int, ...]) -> int:
    """Run the worker until it ends or the application does; then end all that is left.

    Args:
        lifeline: socket to the application. Its other end is closed when the application is gone, or wants all gone.
            The worker's exit status is written to it as a line.
        parent: process id of the application.
        command: the worker's command line.
        keep: descriptors that the worker inherits.

    Returns:
        The worker's exit status, minus the signal's number if one ended it.
    """
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _noted)
    adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    die_with_parent(parent, signal.SIGTERM)
    line = socket.socket(fileno=lifeline)
    worker = subprocess.Popen(command, pass_fds=keep, process_group=0, stdin=subprocess.DEVNULL)  # noqa: S603 our own
    for descriptor in keep:
        os.close(descriptor)  # or the application would not see the worker's end close
    status: int | None = None
    while status is None and not _gone(line, woken):
        status = worker.poll()
    if status is None:
        end_all(worker.pid)
        return worker.wait()
    with contextlib.suppress(OSError):
        line.sendall(b"%d\n" % status)
    end_all(worker.pid)
    return status


def _noted(signum: int, frame: object) -> None:
    """Only the wake-up byte matters."""


def _gone(line: socket.socket, woken: int) -> bool:
    """Wait for something to happen; whether it is that the application has gone, or that all is to end."""
    ready = readable(line.fileno(), woken)
    signals = b""
    if woken in ready:
        signals = os.read(woken, 4096)
    ended = bool({signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(signals))
    # The application never writes: what can be read is the end.
    return ended or line.fileno() in ready


def readable(*descriptors: int) -> set[int]:
    """Wait until there is something to read, or an end, and say where.

    Not by select(2): in an application with many open files descriptors have numbers that it does not know.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}


def end_all(group: int) -> int | None:
    """Kill a child's group and every descendant, also those that left the group, and reap them.

    It ends when there is nothing left to reap. A look at what runs is not enough: what a process leaves that dies in
    that moment is not below it any more, and was not yet below us when that was read.

    Args:
        group: process id of the child, which leads its group.

    Returns:
        The child's exit status, minus the signal's number if one ended it; None if it was not reaped here.
    """
    deadline = time.monotonic() + _PATIENCE
    status: int | None = None
    while True:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == group:
                    status = os.waitstatus_to_exitcode(reaped[1])
        except ChildProcessError:
            return status
        if time.monotonic() > deadline:
            return status
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, as far as they can be read while they come and go (Linux; empty elsewhere)."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        threads: list[Path] = []
        with contextlib.suppress(OSError):  # it has ended meanwhile
            threads = list(tasks.iterdir())
        for thread in threads:
            with contextlib.suppress(OSError):
                children = [int(child) for child in (thread / "children").read_text().split()]
                found += children
                waiting += children
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and more left of it than its exit status (Linux)."""
    return process_state(pid) not in {"", "X", "Z"}


def process_state(pid: int) -> str:
    """The letter of proc(5) for its state; nothing if there is no such process any more (Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The command's name stands in brackets and may hold anything.
    return stat.rpartition(")")[2].split()[0]
