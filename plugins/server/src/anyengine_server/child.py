"""A server that is started, watched and ended with its engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyengine.errors import EngineDied, EngineStartupError

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
_GUARD = Path(__file__).with_name("guard.py")


def free_port() -> int:
    """A TCP port that nobody listens on now, on this machine only."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class ServerProcess:
    """A running command. Made by :meth:`start`; whatever becomes of this process, the server's processes end too.

    Args:
        process: the guard between us and the server.
        name: of the engine, for messages and the logger ``anyengine.server.<name>``.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._logger = logging.getLogger(f"anyengine.server.{name}")
        self._reading = asyncio.create_task(self._read(), name=f"anyengine-server-log {name}")
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, command: Sequence[str], *, name: str, environment: Mapping[str, str]) -> ServerProcess:
        """Start it.

        Args:
            command: program and arguments.
            name: of the engine.
            environment: all variables of its environment.

        Raises:
            EngineStartupError: this interpreter cannot start anything.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                str(_GUARD),
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment),
                limit=_MAX_LINE,
            )
        except OSError as error:
            raise EngineStartupError(f"{command[0]} cannot be started: {error}") from error
        return cls(process, name)

    async def _read(self) -> None:
        output = self._process.stdout
        assert output is not None  # noqa: S101 it was asked for
        while True:
            try:
                line = await output.readline()
            except ValueError:  # a line beyond the limit was dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self._logger.info("%s", text)

    @property
    def pid(self) -> int:
        """Of the guard, whose child the server is."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; above 128 for a signal."""
        return self._process.returncode

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
        ended = asyncio.create_task(self._process.wait())
        try:
            done, _ = await asyncio.wait([ended], timeout=patience)
        finally:
            ended.cancel()
        if not done:
            return None
        await asyncio.wait([self._reading], timeout=patience)
        return self.died()

    async def ready(self, ask: Callable[[], Awaitable[bool]]) -> None:
        """Wait until ``ask`` says so. The caller bounds the time.

        Raises:
            EngineDied: it ended before.
        """
        ended = asyncio.create_task(self._process.wait())
        try:
            while not await ask():
                done, _ = await asyncio.wait([ended], timeout=_ASK_EVERY)
                if done:
                    await asyncio.wait([self._reading], timeout=1.0)
                    raise self.died()
        finally:
            ended.cancel()

    async def stop(self, patience: float = 10.0) -> None:
        """End it: asked first, killed after ``patience`` seconds, with all that it has started. Idempotent.

        It ends before this returns, also where the caller is cancelled meanwhile.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(patience), name=f"anyengine-server-stop {self._name}")
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not self._stopping.done():
                try:
                    await asyncio.shield(self._stopping)
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _stop(self, patience: float) -> None:
        line = self._process.stdin
        assert line is not None  # noqa: S101 it was asked for
        with contextlib.suppress(OSError):
            line.write(b"t")
            await line.drain()
        ended = asyncio.create_task(self._process.wait())
        await asyncio.wait([ended], timeout=patience)
        line.close()  # the guard ends all that is left
        await ended
        await asyncio.wait([self._reading], timeout=1.0)
        self._reading.cancel()
        with contextlib.suppress(OSError):
            await line.wait_closed()
