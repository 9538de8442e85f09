"""The directory below which an HTTP service finds its files.

A path is walked segment by segment; each segment is opened relative to its parent, without following symbolic links
(openat(2), O_NOFOLLOW). So no spelling of a path, and no concurrent change of the tree, leads out of the directory.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MISSING", "NOT_FOUND", "RootDirectory"]

# O_NONBLOCK: open(2) of a FIFO must not wait for a writer.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

#: Errors of open(2) that mean that there is no such file, which is not logged.
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
#: Errors of open(2) that are answered by 404.
NOT_FOUND = MISSING | {errno.EACCES}
#: The shortest time between two warnings about files that can't be read, in seconds.
_WARNING_SECONDS = 1.0


class RootDirectory:
    """A directory.

    Args:
        path: its path, which may contain symbolic links.
        symlinks: whether symbolic links below it are followed, even out of it.

    Attributes:
        path: as given.
        symlinks: as given.
    """

    _log = Logger()

    def __init__(self, path: str, *, symlinks: bool = False) -> None:
        self.path = path
        self.symlinks = symlinks
        self._flags = _OPEN if symlinks else _OPEN | os.O_NOFOLLOW
        self._warned = -_WARNING_SECONDS

    def open_folder(self, names: Sequence[str]) -> int:
        """Open a directory below this one; return its descriptor, which the caller closes.

        Args:
            names: the segments of its path, none of them empty, `.` or `..`.

        Raises:
            OSError: it can't be opened.
        """
        folder = os.open(self.path, _OPEN | os.O_DIRECTORY)
        for name in names:
            outer = folder
            try:
                folder = os.open(name, self._flags | os.O_DIRECTORY, dir_fd=outer)
            finally:
                os.close(outer)
        return folder

    def open_file(self, folder: int, name: str) -> tuple[int, os.stat_result]:
        """Open any type of file in a directory; return its descriptor, which the caller closes, and its status.

        Raises:
            OSError: it can't be opened.
        """
        descriptor = os.open(name, self._flags, dir_fd=folder)
        try:
            return descriptor, os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def path_of(self, names: Sequence[str]) -> str:
        """Return the path of a name below this directory; with a slash at the end if the last segment is empty."""
        return "/".join((self.path.rstrip("/"), *names))

    def warn(self, name: str, error: OSError) -> None:
        """Log that a file can't be read, at most once in _WARNING_SECONDS."""
        now = time.monotonic()
        if now - self._warned >= _WARNING_SECONDS:
            self._warned = now
            self._log.warn("{root}: {name!r} can't be read: {reason}", root=self.path, name=name, reason=error.strerror)
