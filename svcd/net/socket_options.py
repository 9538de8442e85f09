"""Options of sockets that the socket module lacks (socket(7), tcp(7)), and names of abstract UNIX sockets (unix(7))."""

from __future__ import annotations

import os
import socket

__all__ = ["IPPROTO_MPTCP", "TCP_NOTSENT_LOWAT", "has_sized_buffers", "is_mptcp", "unix_address", "unix_path"]

#: Of linux/in.h; in Python since 3.10, where its C library had it.
IPPROTO_MPTCP = 262
#: Of linux/tcp.h (Linux 3.12).
TCP_NOTSENT_LOWAT = 25
#: Of asm-generic/socket.h (Linux 5.14): which buffers have a size that was set.
_SO_BUF_LOCK = 72
_SNDBUF_LOCK, _RCVBUF_LOCK = 1, 2


def is_mptcp(sock: socket.socket) -> bool:
    """Return whether a socket is a Multipath TCP socket."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == IPPROTO_MPTCP


def has_sized_buffers(sock: socket.socket) -> tuple[bool, bool] | None:
    """Return whether the sizes of the buffers for sending and receiving were set; None if that is unknown."""
    try:
        locked = sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    except OSError:
        # An older kernel, or a socket of Multipath TCP.
        return None
    return bool(locked & _SNDBUF_LOCK), bool(locked & _RCVBUF_LOCK)


def unix_address(path: str) -> str:
    """Return the address to bind a UNIX socket to.

    Args:
        path: its file, or @ and its name in the abstract name space.
    """
    return f"\0{path[1:]}" if path.startswith("@") else path


def unix_path(address: str | bytes) -> str:
    """Return the path of a UNIX socket, or @ and its name, from its address as getsockname() has it."""
    if not address:
        return ""
    text = os.fsdecode(address)
    return f"@{text[1:]}" if text.startswith("\0") else text
