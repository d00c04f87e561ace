"""The worker's signs of life, and its log, on a channel and a thread of their own.

The thread beats while the event loop is busy, and stops with the process; what the loop knows (when the engine last
answered) it is told through an attribute.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from anyengine.worker.errors import encode_error
from anyengine.worker.protocol import Failed, Heartbeat, Log, frame
from anyengine.worker.supervisor import descendants, process_state

if TYPE_CHECKING:
    import socket

    from anyengine.errors import AnyEngineError

__all__ = ["INTERVAL", "ControlThread"]

#: Seconds between two heartbeats.
INTERVAL = 1.0
#: Log records that may wait to be sent; more are counted and left out, so that a flood costs the engine nothing.
_MAX_WAITING = 1000
#: Of a log record; logging itself names none above 50.
_HIGHEST_LEVEL = 2**31
#: Beats in a row that find a process stopped before it is reported: a debugger's short stop is none of ours.
_STOPPED_BEATS = 3


class ControlThread(logging.Handler):
    """Sends heartbeats, log records and the engine's failure.

    Attributes:
        answered: when the engine last answered that it works, on the monotonic clock; None while it loads.
    """

    def __init__(self, control: socket.socket) -> None:
        super().__init__()
        self.answered: float | None = None
        self._control = control
        self._records: deque[Log] = deque()
        self._dropped = 0
        self._failure: Failed | None = None
        self._wake = threading.Event()
        self._stopped: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="anyengine-control", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._records) >= _MAX_WAITING:
            self._dropped += 1
            return
        try:
            message = self.format(record)
        except Exception:  # noqa: BLE001 as logging does: a record that cannot be formatted harms nobody
            self.handleError(record)
            return
        # What the channel has no place for would end it, and the engine with it: a level may be any int, even True.
        level = min(int(record.levelno), _HIGHEST_LEVEL)
        self._records.append(Log(level, _clean(str(record.name)), _clean(message)))
        self._wake.set()

    def fail(self, error: AnyEngineError) -> None:
        """Say that the engine as a whole has failed."""
        self._failure = Failed(encode_error(error))
        self._wake.set()

    def _run(self) -> None:
        due = monotonic()
        while True:
            self._wake.wait(max(0.0, due - monotonic()))
            self._wake.clear()
            messages: list[object] = []
            while self._records:
                messages.append(self._records.popleft())
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                messages.append(Log(logging.WARNING, "anyengine.worker", f"{dropped} log records were left out"))
            if self._failure is not None:
                messages.append(self._failure)
                self._failure = None
            if monotonic() >= due:
                due = monotonic() + INTERVAL
                unanswered = 0.0 if self.answered is None else monotonic() - self.answered
                messages.append(Heartbeat(unanswered, self._stopped_processes()))
            if messages:
                data = frame(messages)
                try:
                    self._control.sendall(data)
                except OSError:  # the application has gone; the supervisor sees to the rest
                    return

    def _stopped_processes(self) -> tuple[int, ...]:
        """Processes of the engine that have stood still, stopped by a signal, for several beats."""
        if sys.platform != "linux":
            return ()
        stopped = filter(lambda pid: process_state(pid) in {"T", "t"}, descendants(os.getpid()))
        self._stopped = {pid: self._stopped.get(pid, 0) + 1 for pid in stopped}
        return tuple(pid for pid, beats in self._stopped.items() if beats >= _STOPPED_BEATS)


def _clean(text: str) -> str:
    """As UTF-8 has it."""
    return text.encode(errors="replace").decode()
