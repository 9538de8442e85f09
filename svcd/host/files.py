"""Files read by name, for the floors that open none."""

from __future__ import annotations

import errno
import glob
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

__all__ = ["MOST_BYTES", "LocalFiles"]

#: A larger file is no services file and no collection of quotations.
MOST_BYTES = 16 * 1_048_576


class LocalFiles:
    """svcd.interfaces.FileReader, for real."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}
        self._listed: dict[str, list[str]] = {}

    def read(self, path: str) -> bytes:
        """The whole content of a regular file; see the interface."""
        # A directory is refused by open itself.
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES} bytes")
        return data

    def read_together(self, paths: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """The content of each, or all as they were when they could be read; see the interface."""
        found = {path: self._content(path) for path in paths}
        known = {path: self._known[path] for path in paths if path in self._known}
        if any(isinstance(each, PermissionError) for each in found.values()) and len(known) == len(found):
            return known
        self._known.update({path: each for path, each in found.items() if isinstance(each, bytes)})
        return found

    def _content(self, path: str) -> bytes | OSError:
        try:
            return self.read(path)
        except OSError as error:
            return error

    def entries(self, folder: str) -> Sequence[str]:
        """What is in a directory, or what was when it could be listed; see the interface."""
        try:
            # As text, unchanged.
            found = self._listed[folder] = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]  # noqa: PTH118, PTH208
        except PermissionError:
            if folder not in self._listed:
                raise
            found = self._listed[folder]
        return found

    def stamp(self, path: str) -> Hashable:
        """The file behind all links, its times and its size."""
        found = os.stat(path)  # noqa: PTH116 - as text, unchanged
        # The inode, since a new file may be as long and as old; the time of its change, which nobody can set.
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def is_exposed(self, path: str) -> bool:
        """Whether its mode has bits for others."""
        mode = os.stat(path).st_mode  # noqa: PTH116 - as text, unchanged
        return bool(mode & (stat.S_IROTH | stat.S_IWOTH))

    def matches(self, pattern: str) -> Sequence[str]:
        """The paths that match, sorted."""
        return sorted(glob.glob(pattern))  # noqa: PTH207 - as text, unchanged

    def identity(self, path: str) -> str:
        """Its real path."""
        return os.path.realpath(path)

    def is_directory(self, path: str) -> bool:
        """Whether it can be entered and listed."""
        return os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)  # noqa: PTH112 - Path.is_dir raises


def _open_at_once(path: str, flags: int) -> int:
    # O_NONBLOCK: a FIFO must not make us wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK)
