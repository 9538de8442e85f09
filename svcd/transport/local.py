"""UNIX sockets of the daemon's own, and who is at the other end of one."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from svcd.errors import ListenError, ListenErrors
from svcd.transport.sockets import REMEDIES, remove_stale

__all__ = ["credentials", "open_local"]


def credentials(sock: Any) -> tuple[int, int, int]:  # noqa: ANN401 - a socket, or as much of one
    """The process at the other end of a UNIX socket, its user and its group (SO_PEERCRED, unix(7)).

    Raises:
        OSError: it is no connected UNIX socket.
    """
    pid, user, group = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid, user, group


def open_local(path: str, mode: int) -> socket.socket:
    """Open a listening UNIX socket of the daemon's own, which serves no endpoint.

    Raises:
        ListenErrors: it can't be had.
    """
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.setblocking(False)
        remove_stale(path, opened.type)
        before = os.umask(0o777 & ~mode)
        try:
            opened.bind(path)
        finally:
            os.umask(before)
        opened.listen()
    except OSError as error:
        opened.close()
        remedy = REMEDIES.get(error.errno or 0, "choose another path")
        raise ListenErrors([ListenError("control", path, error.strerror or str(error), remedy)]) from error
    return opened
