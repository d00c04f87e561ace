"""A server that is started, watched and ended with its engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.backend.cancellation import despite_cancellation
from anyengine.errors import EngineDied, EngineStartupError
from anyengine.worker.supervisor import descendants, is_running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

__all__ = ["ServerProcess", "free_port"]

#: Lines of its output that are kept, and bytes of one.
_LOG_LINES = 400
_MAX_LINE = 2**16
#: Lines in an error.
_TAIL = 40
#: Seconds between two questions whether it is ready.
_ASK_EVERY = 0.1
#: Seconds for what it still has to say when it has ended.
_LAST_WORDS = 1.0
#: Seconds that the guard is given to end everything, before it is ended from here.
_GUARD_SECONDS = 25.0
#: Seconds that what is killed from here is given to be gone; a driver may hold a process for a while.
_KILL_SECONDS = 20.0
#: Looks at what runs that have to find nothing.
_LOOKS = 2
#: Number of its output among its pipes.
_OUTPUT = 1
_GUARD = Path(__file__).with_name("guard.py")


def free_port() -> int:
    """A TCP port that nobody listens on now, on this machine only."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class _Watch(asyncio.SubprocessProtocol):
    """Hears of a process: its lines, the end of its output, and its own end, which need not come together.

    (``asyncio.subprocess.Process.wait`` waits for both, and so for whoever else holds the output open.)
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.silent: asyncio.Future[None] = loop.create_future()
        self._say = say
        self._rest = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 the protocol's signature
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line[-_MAX_LINE:].decode(errors="replace").rstrip())
        self._rest = self._rest[-_MAX_LINE:]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        if fd == _OUTPUT and not self.silent.done():
            if self._rest:
                self._say(self._rest.decode(errors="replace").rstrip())
            self.silent.set_result(None)

    def process_exited(self) -> None:
        self.ended.set_result(None)


class ServerProcess:
    """A running command. Made by :meth:`start`; whatever becomes of this process, the server's processes end too.

    The process itself is the guard between us and the server.

    Args:
        name: of the engine, for messages and the logger ``anyengine.server.<name>``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._logger = logging.getLogger(f"anyengine.server.{name}")
        self._watch = _Watch(self._say)
        self._transport: asyncio.SubprocessTransport
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, command: Sequence[str], *, name: str, environment: Mapping[str, str], folder: Path | None = None
    ) -> ServerProcess:
        """Start it.

        Args:
            command: program and arguments.
            name: of the engine.
            environment: all variables of its environment.
            folder: that it works in; by default our own. Paths in the command are relative to it.

        Raises:
            EngineStartupError: this interpreter cannot start anything.
        """
        made = cls(name)
        starting = asyncio.ensure_future(made._start(command, environment, folder))
        try:
            await asyncio.shield(starting)
        except OSError as error:
            raise EngineStartupError(f"{command[0]} cannot be started: {error}") from error
        except asyncio.CancelledError:
            # Not within the start, where asyncio kills the guard, but not what that has started, and waits for that.
            made._stopping = asyncio.create_task(made._give_up(starting))
            await made.stop()
            raise
        return made

    async def _start(self, command: Sequence[str], environment: Mapping[str, str], folder: Path | None) -> None:
        self._transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: self._watch,
            sys.executable,
            "-P",
            str(_GUARD),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
            cwd=folder,
        )

    async def _give_up(self, starting: asyncio.Future[None]) -> None:
        await asyncio.wait([starting])
        if starting.exception() is None:
            await self._stop(0)

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._logger.info("%s", line)

    @property
    def pid(self) -> int:
        """Of the guard, whose child the server is."""
        return self._transport.get_pid()

    @property
    def exit_status(self) -> int | None:
        """None while it runs; above 128 for a signal."""
        return self._transport.get_returncode()

    def log(self) -> tuple[str, ...]:
        """The last lines that it wrote."""
        return tuple(self._lines)

    def died(self) -> EngineDied:
        """The error for a server that has ended by itself."""
        status = self.exit_status
        words = next((f"; its last words: {line}" for line in reversed(self._lines) if line.strip()), "")
        return EngineDied(
            f"the server of {self._name} has ended (exit status {status}){words}",
            exit_status=None if status is None else (status if status <= 128 else 128 - status),  # noqa: PLR2004 shells
            log_tail=self.log()[-_TAIL:],
        )

    async def death(self, patience: float = 1.0) -> EngineDied | None:
        """The error of :meth:`died` if it has ended, or ends within so many seconds; None if it goes on."""
        if not await self._ended(patience):
            return None
        await asyncio.wait([self._watch.silent], timeout=_LAST_WORDS)
        return self.died()

    async def ready(self, ask: Callable[[], Awaitable[bool]]) -> None:
        """Wait until ``ask`` says so. The caller bounds the time.

        Raises:
            EngineDied: it ended before.
        """
        while not await ask():
            if (died := await self.death(_ASK_EVERY)) is not None:
                raise died

    async def _ended(self, patience: float) -> bool:
        done, _ = await asyncio.wait([self._watch.ended], timeout=patience)
        return bool(done)

    async def stop(self, patience: float = 10.0) -> None:
        """End it: asked first, killed after ``patience`` seconds, with all that it has started. Idempotent.

        It ends before this returns, also where the caller is cancelled meanwhile.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(patience), name=f"anyengine-server-stop {self._name}")
        await despite_cancellation(self._stopping)

    async def _stop(self, patience: float) -> None:
        line = self._transport.get_pipe_transport(0)
        assert isinstance(line, asyncio.WriteTransport)  # noqa: S101 it was asked for
        line.write(b"t")
        await self._ended(patience)
        # Not the end of the lifeline alone: where we have forked, another process holds it too.
        line.write(b"k")
        line.close()
        if not await self._ended(_GUARD_SECONDS):
            await self._kill()
            await self._ended(_KILL_SECONDS)
        await asyncio.wait([self._watch.silent], timeout=_LAST_WORDS)
        self._transport.close()  # the output too, whoever holds its other end

    async def _kill(self) -> None:
        """End what the guard should have ended, and then the guard: while it is there, orphans are below it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _KILL_SECONDS
        killed: set[int] = set()
        looks = 0  # one after another at which nothing ran: a child may come below the guard after its list was read
        while looks < _LOOKS and loop.time() < deadline:
            below = self._below()
            for pid in below:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(below)
            looks = 0 if any(map(is_running, killed)) else looks + 1
            await asyncio.sleep(0.01)  # what was killed is not gone at once
        with contextlib.suppress(ProcessLookupError):
            self._transport.kill()

    def _below(self) -> list[int]:
        """What runs below the guard. Nothing where that has ended: its number may be another's by now."""
        if self._watch.ended.done():
            return []
        return list(filter(is_running, descendants(self.pid)))
