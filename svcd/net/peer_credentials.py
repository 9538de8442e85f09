"""Credentials of clients of UNIX sockets: pid, uid and gid of the process at the other end (unix(7))."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.address import UNIXAddress

__all__ = ["CREDENTIALS_BYTES", "UNIXPeer", "credentials", "unix_peer", "unpack_credentials"]

_UCRED = struct.Struct("3i")
#: The size of a struct ucred, in bytes.
CREDENTIALS_BYTES = _UCRED.size


def unpack_credentials(data: bytes) -> tuple[int, int, int]:
    """Return the pid, uid and gid in a struct ucred."""
    pid, uid, gid = _UCRED.unpack(data)
    # The kernel's uid and gid are unsigned; -1 stands for a user without a uid in this namespace.
    return pid, uid & 0xFFFF_FFFF, gid & 0xFFFF_FFFF


def credentials(sock: Any) -> tuple[int, int, int]:  # noqa: ANN401 - a socket, or an object with getsockopt()
    """Return the pid, uid and gid of the process at the other end of a UNIX socket (SO_PEERCRED).

    Raises:
        OSError: the socket is no connected UNIX socket.
    """
    return unpack_credentials(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS_BYTES))


class UNIXPeer(UNIXAddress):
    """Address of a client of a UNIX socket, with its credentials at the time of connect(2).

    Args:
        name: the path of the client's socket; most have none.
        process: the pid, uid and gid.

    Attributes:
        process: as given.
    """

    def __init__(self, name: Any, process: tuple[int, int, int]) -> None:  # noqa: ANN401 - text, bytes or None
        super().__init__(name)
        self.process = process

    @property
    def text(self) -> str:
        """The client as text, for log lines."""
        return f"pid:{self.process[0]}/uid:{self.process[1]}"

    @property
    def user(self) -> str:
        """The user in the form of svcd.addresses.address_number(), for access rules that count by source."""
        return f"uid:{self.process[1]}"


def unix_peer(fd: int, sockaddr: Any) -> UNIXPeer:  # noqa: ANN401 - a socket address
    """Return the address of the client of an accepted connection.

    Args:
        fd: the connection.
        sockaddr: the socket address of the client.

    Raises:
        OSError: the socket is no connected UNIX socket.
    """
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
    try:
        return UNIXPeer(sockaddr or None, credentials(sock))
    finally:
        sock.detach()
