"""A worker from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
from importlib.metadata import version

from anyengine.worker.heartbeat import ControlThread
from anyengine.worker.protocol import PROTOCOL, Hello
from anyengine.worker.server import Server
from anyengine.worker.supervisor import die_with_parent

__all__ = ["serve"]


def serve(requests: int, control: int, parent: int) -> int:
    """Serve one application until it says that it is done, or is gone.

    Args:
        requests: descriptor of the socket with calls and answers.
        control: descriptor of the socket with heartbeats and log records.
        parent: process id of the supervisor.

    Returns:
        The exit status.
    """
    die_with_parent(parent, signal.SIGKILL)
    # Ctrl-C in a terminal is for the application; it will tell us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (requests, control):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 the standard library's signature
    thread = ControlThread(socket.socket(fileno=control))
    logging.captureWarnings(capture=True)
    logging.root.addHandler(thread)
    asyncio.run(_serve(socket.socket(fileno=requests), thread))
    # Without waiting for threads that an engine has left: what it did has ended with `close`.
    logging.shutdown()
    os._exit(0)


async def _serve(requests: socket.socket, control: ControlThread) -> None:
    loop = asyncio.get_running_loop()
    requests.setblocking(False)  # noqa: FBT003 the standard library's signature
    _, server = await loop.create_unix_connection(lambda: Server(loop, control), sock=requests)
    server.greet(Hello(PROTOCOL, version("anyengine"), platform.python_version(), os.getpid()))
    await server.done
