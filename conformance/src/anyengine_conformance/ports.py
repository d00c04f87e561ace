"""Sockets that this process and its children listen on (Linux)."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

__all__ = ["open_ports"]

_LISTENING = "0A"
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def open_ports() -> set[str]:
    """``address:port`` of every listening TCP socket that is not bound to the loopback interface."""
    inodes = {inode for pid in _family_of(os.getpid()) for inode in _sockets(pid)}
    return {_readable(address) for table in ("tcp", "tcp6") for address, inode in _listening(table) if inode in inodes}


def _family_of(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        children = []
    return [pid, *(each for child in children for each in _family_of(child))]


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _listening(table: str) -> list[tuple[str, str]]:
    try:
        lines = Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [(row[1], row[9]) for row in rows if row[3] == _LISTENING and not row[1].startswith(_LOOPBACK)]


def _readable(address: str) -> str:
    """The kernel writes each 32 bits of an address as one number of the machine's byte order, and the port in hex."""
    host, port = address.split(":")
    words = [int(host[place : place + 8], 16).to_bytes(4, sys.byteorder) for place in range(0, len(host), 8)]
    name = ipaddress.ip_address(b"".join(words))
    return f"[{name}]:{int(port, 16)}" if name.version == 6 else f"{name}:{int(port, 16)}"  # noqa: PLR2004 IPv6
