"""A worker from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
import sys
import traceback
from importlib.metadata import version
from typing import NoReturn

from anyengine.worker.heartbeat import ControlThread
from anyengine.worker.protocol import PROTOCOL, Hello
from anyengine.worker.server import Server
from anyengine.worker.supervisor import die_with_parent

__all__ = ["serve"]


#: Seconds for what an engine has left running on the event loop to end, once it is closed.
_LAST_SECONDS = 5.0


def serve(requests: int, control: int, parent: int) -> NoReturn:
    """Serve one application until it says that it is done, or is gone; then end this process.

    Args:
        requests: descriptor of the socket with calls and answers.
        control: descriptor of the socket with heartbeats and log records.
        parent: process id of the supervisor.
    """
    die_with_parent(parent, signal.SIGKILL)
    # Ctrl-C in a terminal is for the application; it will tell us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (requests, control):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 the standard library's signature
    thread = ControlThread(socket.socket(fileno=control))
    logging.captureWarnings(capture=True)
    logging.root.addHandler(thread)
    status = 1
    try:
        # Not `asyncio.run`: its end waits for every task and thread that an engine has left, for ever if need be.
        asyncio.new_event_loop().run_until_complete(_serve(socket.socket(fileno=requests), thread))
        status = 0
    except SystemExit as end:  # an engine's own
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 these are its last words
        traceback.print_exc()
    finally:
        # Nor does the interpreter's own end wait for threads: what an engine did has ended with `close`.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def _serve(requests: socket.socket, control: ControlThread) -> None:
    loop = asyncio.get_running_loop()
    requests.setblocking(False)  # noqa: FBT003 the standard library's signature
    _, server = await loop.create_unix_connection(lambda: Server(loop, control), sock=requests)
    server.greet(Hello(PROTOCOL, version("anyengine"), platform.python_version(), os.getpid()))
    await server.done
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_LAST_SECONDS)
