"""Keeps what an engine writes to stdout and stderr away from our own output, and remembers the end of it."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Capture"]

_KEPT = 16 * 1024
_BLOCK = 64 * 1024
_LINES = 40
_MARK = b"\x00taken\x00"


class Capture:
    """Inside it, file descriptors 1 and 2, also those of child processes, end in a small ring.

    However much is written, the writer never blocks and nothing grows.

    Attributes:
        stdout: where our own output goes meanwhile.
        stderr: the same for messages.
    """

    def __enter__(self) -> Self:
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(descriptor) for descriptor in (1, 2)]
        self.stdout: TextIO = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
        self.stderr: TextIO = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
        self._tail = b""
        self._dropped = 0
        self._came = threading.Condition()
        read, write = os.pipe()
        self._read = read
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.close(write)
        self._reader = threading.Thread(target=self._drain, name="conformance-capture", daemon=True)
        self._reader.start()
        return self

    def _drain(self) -> None:
        while block := os.read(self._read, _BLOCK):
            with self._came:
                whole = self._tail + block
                self._tail = whole[-_KEPT:]
                self._dropped += len(whole) - len(self._tail)
                self._came.notify_all()

    def take(self) -> str:
        """The last lines since this was asked last."""
        sys.stdout.flush()
        sys.stderr.flush()
        # Behind all that was written so far: once it has come, so has the rest.
        os.write(1, _MARK)
        with self._came:
            self._came.wait_for(lambda: _MARK in self._tail, timeout=1.0)
            tail, self._tail = self._tail.replace(_MARK, b""), b""
            dropped, self._dropped = self._dropped, 0
        lines = tail.decode("utf-8", "replace").splitlines()
        cut = dropped or len(lines) > _LINES
        return "\n".join(["[…]"] * bool(cut) + lines[-_LINES:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        self.stdout.close()
        self.stderr.close()
        # A child of the engine may hold the pipe open; its reader is a daemon and ends with us.
        self._reader.join(1.0)
