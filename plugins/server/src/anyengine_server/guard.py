"""The small process between us and a server that we start: whichever of the two ends, nothing stays behind.

Run by its path, as a program: ``python guard.py COMMAND …``. Its standard input is the lifeline: ``t`` asks the server
to end (SIGTERM); ``k``, or the end of the lifeline, ends everything at once. Both, for a process that we have forked
holds the lifeline open too. It exits as the server did. It needs the standard library only, as does the supervisor of
workers, with which it shares how all is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from anyengine.worker.supervisor import adopt_orphans, end_all, readable

__all__ = ["main"]


def main(command: list[str]) -> int:
    """Run a command until it ends or the lifeline does."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noted)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The lifeline decides. Not SIG_IGN: a program inherits that, and would not end when it is asked to.
        signal.signal(signum, _noted)
    adopt_orphans()
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, restore_signals=True)  # noqa: S603
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", flush=True)  # noqa: T201 the log of the server
        return 127
    status = None
    while status is None:
        ready = readable(0, woken)
        if 0 in ready:
            if os.read(0, 1) in {b"", b"k"}:
                break
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGTERM)
        if woken in ready:
            os.read(woken, 4096)
        status = child.poll()
    ended = end_all(child.pid)
    status = ended if status is None else status
    if status is None:  # a driver holds it: it ends when that lets it go
        status = child.wait()
    return status if status >= 0 else 128 - status


def _noted(signum: int, frame: object) -> None:
    """Only the wake-up byte matters."""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
