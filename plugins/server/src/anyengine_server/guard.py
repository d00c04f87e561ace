"""The small process between us and a server that we start: whichever of the two ends, nothing stays behind.

Run by its path, as a program: ``python guard.py COMMAND …``. Its standard input is the lifeline: ``t`` asks the server
to end (SIGTERM); ``k``, or the end of the lifeline, ends everything at once. Both, for a process that we have forked
holds the lifeline open too. It exits as the server did. Only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["descendants", "main"]

_PR_SET_CHILD_SUBREAPER = 36
#: Seconds that processes are given to be gone after SIGKILL; a driver may hold one for a while.
_PATIENCE = 20.0


def main(command: list[str]) -> int:
    """Run a command until it ends or the lifeline does."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noted)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The lifeline decides. Not SIG_IGN: a program inherits that, and would not end when it is asked to.
        signal.signal(signum, _noted)
    if sys.platform == "linux":
        # What the server leaves behind becomes ours, so it is found.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, restore_signals=True)  # noqa: S603
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", flush=True)  # noqa: T201 the log of the server
        return 127
    poll = select.poll()
    for source in (0, woken):
        poll.register(source, select.POLLIN)
    status = None
    while status is None:
        ready = {source for source, _ in poll.poll()}
        if 0 in ready:
            if os.read(0, 1) in {b"", b"k"}:
                break
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGTERM)
        if woken in ready:
            os.read(woken, 4096)
        status = child.poll()
    ended = _end_all(child.pid)
    status = ended if status is None else status
    if status is None:  # a driver holds it: it ends when that lets it go
        status = child.wait()
    return status if status >= 0 else 128 - status


def _noted(signum: int, frame: object) -> None:
    """Only the wake-up byte matters."""


def _end_all(server: int) -> int | None:
    """Kill the server's group and every descendant, also those that left the group, and reap them.

    It ends when there is nothing left to reap. A look at what runs is not enough: what a server leaves that dies in
    that moment is not below it any more, and was not yet below us when that was read.

    Returns:
        The exit status of the server, if it was reaped here.
    """
    deadline = time.monotonic() + _PATIENCE
    status: int | None = None
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.killpg(server, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == server:
                    status = os.waitstatus_to_exitcode(reaped[1])
        except ChildProcessError:
            break
        time.sleep(0.01)
    return status


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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
