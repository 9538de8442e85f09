"""Processes that have a port or a UNIX socket's path, as /proc tells (proc(5)).

The sockets of a process that another user owns are seen by root alone.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Process", "socket_owner"]

#: How long a search may take, in seconds: it reads the links of all descriptors of all processes.
_MAX_SECONDS = 2.0
#: States of /proc/net/tcp: LISTEN. For udp a bound socket is in TCP_CLOSE.
_STATES: dict[int, str] = {socket.SOCK_STREAM: "0A", socket.SOCK_DGRAM: "07"}
_TABLES: dict[int, tuple[str, str]] = {socket.SOCK_STREAM: ("tcp", "tcp6"), socket.SOCK_DGRAM: ("udp", "udp6")}


class Process(NamedTuple):
    """A process.

    Attributes:
        pid: its number.
        name: its command name.
    """

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def socket_owner(kind: int, host: str, port: int, path: str = "") -> Process | None:
    """Return the process that has an address in use, or None if /proc does not tell.

    Args:
        kind: SOCK_STREAM or SOCK_DGRAM.
        host: the address that is asked for, as a literal; a socket on another address does not count, unless one of
            them is a wildcard.
        port: the port.
        path: the path of a UNIX socket instead.
    """
    try:
        inodes = set(_unix_inodes(path) if path else _inet_inodes(kind, host, port))
        return _owner_of(inodes) if inodes else None
    except OSError:
        return None


def _inet_inodes(kind: int, host: str, port: int) -> Iterator[str]:
    wanted = _packed(host)
    for table in _TABLES[kind]:
        try:
            lines = _read(f"/proc/net/{table}").splitlines()[1:]
        except OSError:
            # No IPv6.
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == _STATES[kind] and int(number, 16) == port and _overlap(wanted, _unpacked(address)):
                yield fields[9]


def _packed(host: str) -> bytes:
    literal = host.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in literal else socket.AF_INET, literal)


def _unpacked(digits: str) -> bytes:
    """Return the bytes of an address, which stands in words of the machine's byte order."""
    return b"".join(struct.pack("=I", int(digits[i : i + 8], 16)) for i in range(0, len(digits), 8))


def _overlap(wanted: bytes, taken: bytes) -> bool:
    """Whether one address is in the way of another: the same, or a wildcard; IPv6's may be one for IPv4 as well."""
    if len(wanted) != len(taken):
        return len(taken) > len(wanted) and not any(taken)
    return wanted == taken or not any(wanted) or not any(taken)


def _unix_inodes(path: str) -> Iterator[str]:
    for line in _read("/proc/net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == path:
            yield fields[6]


def _owner_of(inodes: set[str]) -> Process | None:
    """Return the first process that has one of the sockets open."""
    links = {f"socket:[{inode}]" for inode in inodes}
    until = time.monotonic() + _MAX_SECONDS
    for pid in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if not pid.isdecimal():
            continue
        if time.monotonic() > until:
            return None
        if _has_link(f"/proc/{pid}/fd", links):
            return Process(int(pid), _read(f"/proc/{pid}/comm").strip())
    return None


def _has_link(folder: str, links: set[str]) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_target(entry.path) in links for entry in entries)
    except OSError:
        # The process has ended, or is another user's.
        return False


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - thousands of them
    except OSError:
        return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - one system call less
        return file.read()
