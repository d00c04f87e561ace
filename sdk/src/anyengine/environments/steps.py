"""Running venv and pip, so that nothing of them outlives us and everything they say is kept."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.environments.probe import clean_variables
from anyengine.errors import EnvironmentFailed
from anyengine.worker import supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

__all__ = ["Steps", "is_full"]

_TAIL = 20
_FULL = ("No space left on device", "Disk quota exceeded", "[Errno 28]")
#: Runs a command under the workers' supervisor, which needs no package of ours: when we are killed, so is pip.
_SUPERVISED = (
    "import os, runpy, sys; supervise = runpy.run_path(sys.argv[1])['supervise']; "
    "status = supervise(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:], ()); "
    "sys.exit(status if status >= 0 else 128 - status)"
)


class Steps:
    """The commands that make one environment.

    Args:
        folder: of the environment; temporary files and the log are kept in it.
        lock: a descriptor that is held as long as a command runs, even where we are killed meanwhile.
        progress: called with each line that a command prints.
    """

    def __init__(self, folder: Path, lock: int, progress: Callable[[str], None], *, engine: str) -> None:
        self._folder = folder
        self._lock = lock
        self._progress = progress
        self._engine = engine
        self._temporary = folder / "tmp"
        self.log = folder / "create.log"

    def run(self, what: str, command: Sequence[str]) -> None:
        """Run a command to its end.

        Args:
            what: it does, for the error's message.
            command: with its arguments.

        Raises:
            EnvironmentFailed: it failed; with its last lines.
        """
        tail: deque[str] = deque(maxlen=_TAIL)
        try:
            self._temporary.mkdir(exist_ok=True)
            with self.log.open("ab") as log:
                log.write(f"$ {' '.join(command)}\n".encode(errors="replace"))
                status = self._watch(command, log, tail)
            shutil.rmtree(self._temporary)
        except OSError as error:
            raise self._failed(f"{what}: {error}", tail, full=is_full(error)) from error
        if status != 0:
            how = f"exit status {status}" if status < 128 else f"signal {status - 128}"  # noqa: PLR2004 the shell's
            said = next((line for line in reversed(tail) if "error" in line.lower()), tail[-1] if tail else "")
            full = any(mark in line for line in tail for mark in _FULL)
            raise self._failed(f"{what} failed ({how}): {said}", tail, full=full)

    def _failed(self, reason: str, tail: Sequence[str], *, full: bool) -> EnvironmentFailed:
        if full:
            reason = f"the disk of {self._folder} is full ({self._free() // 2**20} MiB are free): {reason}"
        return EnvironmentFailed(reason, engine=self._engine, field="environment", log_tail=tuple(tail))

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return 0

    def _watch(self, command: Sequence[str], log: BinaryIO, tail: deque[str]) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = self._start(command, theirs.fileno())
            theirs.close()
            try:
                assert process.stdout is not None  # noqa: S101 it was asked for
                with process.stdout:
                    for line in process.stdout:
                        log.write(line)
                        text = line.decode(errors="replace").rstrip()
                        if text:
                            tail.append(text)
                            self._progress(text)
                return process.wait()
            finally:
                if process.poll() is None:
                    # A Ctrl-C, a full disk: the supervisor kills the command and everything that it started.
                    with contextlib.suppress(OSError):
                        ours.shutdown(socket.SHUT_RDWR)
                    self._reap(process)

    def _start(self, command: Sequence[str], lifeline: int) -> subprocess.Popen[bytes]:
        script = str(Path(supervisor.__file__).absolute())
        return subprocess.Popen(  # noqa: S603 the user's own interpreter
            [sys.executable, "-I", "-c", _SUPERVISED, script, str(lifeline), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=self._variables(),
            pass_fds=(lifeline, self._lock),
            start_new_session=True,
        )

    def _variables(self) -> dict[str, str]:
        # Temporary files beside the environment: deleted with it, and on the disk that must have the room anyhow.
        # PIP_USER: whoever has it set means other installations; here pip would refuse to work.
        own = {"TMPDIR": str(self._temporary), "PIP_USER": "0", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        return clean_variables() | own

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_full(error: OSError) -> bool:
    """Whether a disk is full, or the caller's share of it."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}
