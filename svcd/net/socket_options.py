"""Socket options that the socket module lacks (socket(7), tcp(7)), and names of abstract UNIX sockets (unix(7))."""

from __future__ import annotations

import os
import socket

__all__ = ["IPPROTO_MPTCP", "TCP_NOTSENT_LOWAT", "has_sized_buffers", "is_mptcp", "unix_address", "unix_path"]

#: From linux/in.h; Python has it since 3.10 if the C library has it.
IPPROTO_MPTCP = 262
#: From linux/tcp.h (Linux 3.12).
TCP_NOTSENT_LOWAT = 25
#: From asm-generic/socket.h (Linux 5.14): the buffers whose sizes were set.
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
        # The kernel is older, or the socket is a Multipath TCP socket.
        return None
    return bool(locked & _SNDBUF_LOCK), bool(locked & _RCVBUF_LOCK)


def unix_address(path: str) -> str:
    """Return the address to bind a UNIX socket to.

    Args:
        path: the path of its file, or @ and its name in the abstract namespace.
    """
    return f"\0{path[1:]}" if path.startswith("@") else path


def unix_path(address: str | bytes) -> str:
    """Return the path of a UNIX socket, or @ and its abstract name, from the result of getsockname()."""
    if not address:
        return ""
    text = os.fsdecode(address)
    return f"@{text[1:]}" if text.startswith("\0") else text
