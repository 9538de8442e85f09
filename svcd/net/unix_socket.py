"""Files of UNIX sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

__all__ = ["bind_local", "file_of", "has_file", "remove_file"]


def file_of(path: str) -> tuple[int, int]:
    """Return the device and inode of a file.

    Raises:
        OSError: the file does not exist.
    """
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def bind_local(opened: socket.socket, path: str, mode: int) -> None:
    """Bind a UNIX socket; replace a socket file on which no process listens any more.

    Raises:
        OSError: the path can't be bound.
    """
    _remove_stale(path, opened.type)
    # The umask applies to bind(2), so the file never has wider permissions.
    before = os.umask(0o777 & ~mode)
    try:
        opened.bind(path)
    finally:
        os.umask(before)


def has_file(path: str, file: tuple[int, int]) -> bool:
    """Return whether the file at a path has this device and inode."""
    try:
        return file_of(path) == file
    except OSError:
        return False


def remove_file(path: str, file: tuple[int, int] | None) -> None:
    """Remove the file of a UNIX socket if permissions allow it; keep a file that has replaced it."""
    with contextlib.suppress(OSError):
        if file is not None and has_file(path, file):
            os.unlink(path)  # noqa: PTH108 - one system call


def _remove_stale(path: str, kind: int) -> None:
    """Remove a socket file of a former daemon, if no process listens on it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "the path is a file that is not a socket")
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
