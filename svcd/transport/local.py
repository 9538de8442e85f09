"""UNIX sockets: their files, and who is at the other end of one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from typing import Any

from svcd.transport.inherited import file_of

__all__ = ["bind_local", "credentials", "remove_file"]


def credentials(sock: Any) -> tuple[int, int, int]:  # noqa: ANN401 - a socket, or as much of one
    """The process at the other end of a UNIX socket, its user and its group (SO_PEERCRED, unix(7)).

    Raises:
        OSError: it is no connected UNIX socket.
    """
    pid, user, group = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid, user, group


def bind_local(opened: socket.socket, path: str, mode: int) -> None:
    """Bind a UNIX socket, in the place of one that nobody listens at any more.

    Raises:
        OSError: it can't be bound.
    """
    _remove_stale(path, opened.type)
    # The file is never seen with wider permissions: bind(2) makes it under the umask.
    before = os.umask(0o777 & ~mode)
    try:
        opened.bind(path)
    finally:
        os.umask(before)


def remove_file(path: str, file: tuple[int, int] | None) -> None:
    """Remove the file of a UNIX socket, as far as we may; another one at its path is somebody else's by now."""
    with contextlib.suppress(OSError):
        if file_of(path) == file:
            os.unlink(path)  # noqa: PTH108 - one system call


def _remove_stale(path: str, kind: int) -> None:
    """Remove what a daemon that is gone left behind: a socket at which nobody listens."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket stands there")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108 - one system call
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
