"""The files of UNIX sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

__all__ = ["bind_local", "file_of", "has_file", "remove_file"]


def file_of(path: str) -> tuple[int, int]:
    """Device and inode of a file.

    Raises:
        OSError: it is not there.
    """
    status = os.lstat(path)
    return status.st_dev, status.st_ino


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


def has_file(path: str, file: tuple[int, int]) -> bool:
    """Say whether a file, by its device and inode, is the one at a path."""
    try:
        return file_of(path) == file
    except OSError:
        return False


def remove_file(path: str, file: tuple[int, int] | None) -> None:
    """Remove the file of a UNIX socket, as far as we may; another one at its path is somebody else's by now."""
    with contextlib.suppress(OSError):
        if file is not None and has_file(path, file):
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
