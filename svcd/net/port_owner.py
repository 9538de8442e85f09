"""Processes that use a port or the path of a UNIX socket, from /proc (proc(5)).

Only root can read the descriptors of other users' processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["BoundSocket", "Process", "bound_sockets", "owner_of", "socket_owner", "socket_owners"]

#: The time limit of a search, in seconds: it reads the links of all descriptors of all processes.
_MAX_SECONDS = 2.0
#: States of /proc/net/tcp: LISTEN. For udp a bound socket is in TCP_CLOSE.
_STATES: dict[int, str] = {socket.SOCK_STREAM: "0A", socket.SOCK_DGRAM: "07"}
#: Flags and type in /proc/net/unix: SO_ACCEPTCON, and SOCK_DGRAM.
_UNIX_LISTENS, _UNIX_DATAGRAMS = "00010000", "0002"
_TABLES: dict[int, tuple[str, str]] = {socket.SOCK_STREAM: ("tcp", "tcp6"), socket.SOCK_DGRAM: ("udp", "udp6")}


class Process(NamedTuple):
    """Process.

    Attributes:
        pid: the pid.
        name: the command name.
    """

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class BoundSocket(NamedTuple):
    """Listening stream socket, or bound datagram socket.

    Attributes:
        host: the address as a literal; empty for a UNIX socket.
        port: the port; 0 for a UNIX socket.
        inode: the inode of the socket in /proc.
    """

    host: str
    port: int
    inode: str


def socket_owner(kind: int, host: str, port: int, path: str = "") -> Process | None:
    """Return a process that uses an address; None if /proc does not show one.

    Args:
        kind: SOCK_STREAM or SOCK_DGRAM.
        host: the address, as a literal. It conflicts with the same address, and a wildcard with all addresses.
        port: the port.
        path: the path of a UNIX socket instead of host and port.
    """
    return owner_of(bound_sockets(kind, host, port, path))


def bound_sockets(kind: int, host: str, port: int, path: str = "") -> list[BoundSocket]:
    """Return the sockets in /proc that may conflict with an address; arguments as for socket_owner()."""
    try:
        return list(_unix_sockets(path) if path else _inet_sockets(kind, host, port))
    except OSError:
        return []


def owner_of(sockets: Iterable[BoundSocket]) -> Process | None:
    """Return the first process that has any of the sockets open; None if /proc does not show one."""
    inodes = {each.inode for each in sockets}
    try:
        return next(iter(_owners(inodes, limit=1).values()), None) if inodes else None
    except OSError:
        return None


def socket_owners() -> dict[str, Process]:
    """Return a process for each open socket, by inode. It should be called before root privileges are dropped."""
    try:
        return _owners()
    except OSError:
        return {}


def _inet_sockets(kind: int, host: str, port: int) -> Iterator[BoundSocket]:
    requested = _packed(host)
    for table in _TABLES[kind]:
        try:
            lines = _read(f"/proc/net/{table}").splitlines()[1:]
        except OSError:
            # The file is missing without IPv6.
            continue
        for line in lines:
            fields = line.split()
            digits, _, number = fields[1].partition(":")
            if fields[3] != _STATES[kind] or int(number, 16) != port:
                continue
            address = _unpacked(digits)
            if _overlap(requested, address):
                family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
                yield BoundSocket(socket.inet_ntop(family, address), port, fields[9])


def _packed(host: str) -> bytes:
    literal = host.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in literal else socket.AF_INET, literal)


def _unpacked(digits: str) -> bytes:
    """Return the bytes of an address, which /proc prints as 32-bit words in the machine's byte order."""
    return b"".join(struct.pack("=I", int(digits[i : i + 8], 16)) for i in range(0, len(digits), 8))


def _overlap(address: bytes, taken: bytes) -> bool:
    """Return whether two addresses conflict: they are equal, or one is a wildcard. That of IPv6 may include IPv4."""
    if len(address) != len(taken):
        return len(taken) > len(address) and not any(taken)
    return address == taken or not any(address) or not any(taken)


def _unix_sockets(path: str) -> Iterator[BoundSocket]:
    for line in _read("/proc/net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        # Connected stream sockets have the path of the listening socket, too.
        bound = len(fields) == 8 and (fields[3] == _UNIX_LISTENS or fields[4] == _UNIX_DATAGRAMS)
        if bound and fields[7] == path:
            yield BoundSocket("", 0, fields[6])


def _owners(inodes: Collection[str] | None = None, limit: int | None = None) -> dict[str, Process]:
    """Return a process for each open socket, by inode.

    Args:
        inodes: the inodes of the sockets; None for all sockets.
        limit: the number of sockets at which the search ends; None for no limit.
    """
    links = None if inodes is None else {f"socket:[{inode}]" for inode in inodes}
    found: dict[str, Process] = {}
    until = time.monotonic() + _MAX_SECONDS
    for pid in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if not pid.isdecimal():
            continue
        if time.monotonic() > until or (limit is not None and len(found) >= limit):
            break
        targets = _socket_links(f"/proc/{pid}/fd")
        for target in targets if links is None else targets & links:
            with contextlib.suppress(OSError):
                # The process may have exited.
                found.setdefault(target[8:-1], Process(int(pid), _read(f"/proc/{pid}/comm").strip()))
    return found


def _socket_links(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {target for entry in entries if (target := _target(entry.path)).startswith("socket:[")}
    except OSError:
        # The process has exited, or belongs to another user.
        return set()


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - thousands of calls
    except OSError:
        return ""


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - one system call less
        return file.read()
