"""The application's hold on a worker process: its start, its signs of life, its log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from anyengine.errors import AnyEngineError, EngineDied, EngineStartupError, EngineUnresponsive
from anyengine.worker.errors import decode_error
from anyengine.worker.protocol import Failed, FrameReader, Heartbeat, Log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["WorkerProcess"]

#: Seconds without a heartbeat after which a worker that has loaded is taken for hung; before, it is `health_timeout`.
_HEARTBEAT_TIMEOUT = 6.0
#: What silences a worker that computes, and what its plugin's author does about it.
_SILENCED = "a step that holds Python's GIL silences it: the plugin has to release the GIL or take shorter steps"
#: How often the watching thread looks up, in seconds.
_TICK = 0.5
#: Seconds that the supervisor is given to end everything, before its group is killed from here.
_SUPERVISOR_SECONDS = 25.0
#: Lines kept for the error that tells of a death, and bytes of a line without an end.
_TAIL_LINES = 40
_MAX_LINE = 8192
#: Times that its output is read in a row, at most 64 KiB each: as much as a pipe may hold.
_READS = 16


class WorkerProcess:
    """A running worker.

    Attributes:
        pid: of the supervisor, which is the leader of the session.
        worker_pid: of the worker itself, which leads a group of its own; 0 until it has said hello.
        requests: the socket for calls and answers; whoever takes it closes it.
    """

    def __init__(
        self,
        python: Path,
        engine: str,
        *,
        variables: Mapping[str, str],
        health_timeout: float,
        failed: Callable[[AnyEngineError], None],
    ) -> None:
        """Start it.

        Args:
            python: the interpreter.
            engine: name of the engine, for messages and loggers.
            variables: environment variables of the worker, beside our own.
            health_timeout: seconds within which the engine has to answer.
            failed: called on the event loop, once, when the worker has died or hangs.

        Raises:
            EngineStartupError: the interpreter cannot be started.
        """
        self.worker_pid = 0
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._failed = failed
        self._health_timeout = health_timeout
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._logger = logging.getLogger(f"anyengine.worker.{engine}")
        self._over = False
        self._closing = False
        self._status: int | None = None
        # Loading is work of libraries that keep the interpreter's lock to themselves for longer than a heartbeat.
        self._patience = (max(_HEARTBEAT_TIMEOUT, health_timeout), 0.0)
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._start(python, variables)
        self._thread = threading.Thread(target=self._watch, name=f"anyengine-worker-{engine}", daemon=True)
        self._thread.start()

    def _start(self, python: Path, variables: Mapping[str, str]) -> None:
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs.extend(socket.socketpair() for _ in range(3))
            (self._lifeline, lifeline), (self.requests, requests), (self._control, control) = pairs
            theirs = (lifeline, requests, control)
            arguments = [str(end.fileno()) for end in theirs]
            # In this thread: the kernel's parent-death signal is about the thread that starts a process.
            self._process = subprocess.Popen(  # noqa: S603 the user's own interpreter
                [str(python), "-P", "-m", "anyengine.worker", "--supervise", *arguments, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[end.fileno() for end in theirs],
                start_new_session=True,
                env=_variables(python, variables),
            )
        except OSError as error:
            for pair in pairs:
                for end in pair:
                    end.close()
            raise EngineStartupError(
                f"the interpreter {python} cannot be started: {error.strerror or error}", engine=self._engine
            ) from error
        for end in theirs:
            end.close()
        self.pid = self._process.pid

    def ready(self) -> None:
        """From now on a worker without a heartbeat is taken for hung soon: it has loaded."""
        self._patience = (_HEARTBEAT_TIMEOUT, monotonic())

    # -- the watching thread ----------------------------------------------------------------------

    def _watch(self) -> None:
        output = self._process.stdout
        assert output is not None  # noqa: S101 it was asked for
        with selectors.DefaultSelector() as selector:
            for source in (self._control, self._lifeline, output):
                os.set_blocking(source.fileno(), False)
                selector.register(source, selectors.EVENT_READ)
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(AttributeError, OSError):  # not Linux: then the tick notices
                    ended = os.pidfd_open(self.pid)
                    stack.callback(os.close, ended)
                    selector.register(ended, selectors.EVENT_READ)
                self._watch_all(selector, output.fileno())
        for source in (self._lifeline, self._control, output):
            source.close()
        self._call(self.exited.set_result, None)

    def _watch_all(self, selector: selectors.BaseSelector, output: int) -> None:
        frames = FrameReader(FrameReader.CONTROL)
        lines = _Lines(self._say)
        beat: float | None = None
        late = False
        while True:
            ready = {key.fileobj for key, _ in selector.select(_TICK)}
            if self._control in ready:
                beat = self._hear(selector, frames) or beat
            lines.read(output)
            if self._lifeline in ready and self._lifeline.fileno() >= 0:
                self._end(selector)
            status = self._process.poll()
            if status is not None:
                lines.read(output)
                lines.end()
                self._died(self._status if self._status is not None else status)
                self._kill_group()
                return
            # Twice in a row: a computer that slept wakes up with its heartbeats still to be read.
            limit, since = self._patience
            silent = beat is not None and monotonic() - max(beat, since) > limit
            if silent and late:
                why = _SILENCED if since else "health_timeout, for it loads"
                self._fail(self._unresponsive(f"its worker has given no sign of life for {limit:.0f} s ({why})"))
            late = silent

    def _hear(self, selector: selectors.BaseSelector, frames: FrameReader) -> float | None:
        """Take what came on the control channel; when the last heartbeat came."""
        beat = None
        try:
            data = self._control.recv(2**16)
            messages = list(frames.feed(data))
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:
            selector.unregister(self._control)
            return None
        for message in messages:
            if isinstance(message, Heartbeat):
                beat = monotonic()
                self._judge(message)
            elif isinstance(message, Log):
                self._say(message.message, message.logger, message.level)
            elif isinstance(message, Failed):
                self._fail(decode_error(message.error))
        return beat

    def _judge(self, beat: Heartbeat) -> None:
        if beat.stopped:
            pids = ", ".join(map(str, beat.stopped))
            self._fail(self._unresponsive(f"a signal has stopped its process {pids}"))
        elif beat.unanswered > self._health_timeout:
            self._fail(self._unresponsive(f"it has not answered for {beat.unanswered:.0f} s (health_timeout)"))

    def _end(self, selector: selectors.BaseSelector) -> None:
        """The supervisor tells that the worker has ended."""
        try:
            word = self._lifeline.recv(64)
        except OSError:
            word = b""
        if word:
            self._status = int(word)
            self._died(self._status)
        else:
            selector.unregister(self._lifeline)

    def _say(self, message: str, logger: str = "output", level: int = logging.INFO) -> None:
        self._tail.append(message)
        self._logger.getChild(logger).log(level, "%s", message)

    @property
    def log_level(self) -> int:
        """What is worth sending."""
        return self._logger.getEffectiveLevel()

    # -- the end ----------------------------------------------------------------------------------

    def died(self, what: str = "died") -> EngineDied:
        """The error for an engine that is gone."""
        status = self._status
        how = "" if status is None else f" ({_named(status)})"
        return EngineDied(
            f"the worker of {self._engine} {what}{how}; load a new engine{self.last_words()}",
            engine=self._engine,
            exit_status=status,
            log_tail=tuple(self._tail),
        )

    def last_words(self) -> str:
        """The last line of its log, for the end of a message."""
        lines = [line for text in self._tail for line in text.splitlines() if line.strip()]
        return f"; its last words: {lines[-1].strip()}" if lines else ""

    def _died(self, status: int) -> None:
        self._status = status
        self._fail(self.died())

    def _unresponsive(self, why: str) -> EngineUnresponsive:
        return EngineUnresponsive(f"{self._engine} hangs: {why}; it was ended, load a new engine", engine=self._engine)

    def _fail(self, error: AnyEngineError) -> None:
        if self._over or self._closing:
            return
        self._over = True
        error.engine = error.engine or self._engine
        if isinstance(error, EngineDied) and not error.log_tail:
            error.log_tail = tuple(self._tail)
        self._call(self._failed, error)
        self.kill()

    def _call(self, what: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError, asyncio.InvalidStateError):  # the loop is closed: nobody is there
            self._loop.call_soon_threadsafe(what, *arguments)

    def closing(self) -> None:
        """From now on an end is no failure."""
        self._closing = True

    def kill(self) -> None:
        """End the worker and all that belongs to it; ``exited`` tells when."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_RDWR)

    async def gone(self, patience: float) -> None:
        """Wait until nothing is left; what is still there after ``patience`` seconds is killed."""
        for wait, action in ((patience, self.kill), (_SUPERVISOR_SECONDS, self._kill_group), (5.0, None)):
            done, _ = await asyncio.wait([self.exited], timeout=wait)
            if done:
                return
            if action is not None:
                action()

    def _kill_group(self) -> None:
        # The worker's own group too: it outlives a supervisor that was killed.
        for group in filter(None, (self.pid, self.worker_pid)):
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)


class _Lines:
    """Cuts the worker's output into lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""

    def read(self, descriptor: int) -> None:
        """Take what there is; not more than a pipe holds, or who writes faster than this reads would keep the watch."""
        with contextlib.suppress(OSError):
            for _ in range(_READS):
                data = os.read(descriptor, 2**16)
                if not data:
                    break
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest[-_MAX_LINE:]
                self._emit(lines)

    def end(self) -> None:
        """Take what stands without a line break."""
        self._emit([self._rest])

    def _emit(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text:
                self._say(text)


def _variables(python: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Our own environment, without what would change which packages the interpreter finds."""
    ours = {name: value for name, value in os.environ.items() if name not in _PYTHON}
    # Programs of its environment (a compiler's driver, ninja) come first.
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    return ours | {"PATH": path, "PYTHONUNBUFFERED": "1"} | dict(variables)


_PYTHON = frozenset({"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONEXECUTABLE", "VIRTUAL_ENV"})


def _named(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
