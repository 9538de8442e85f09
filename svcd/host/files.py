"""Files of the local file system, read by path."""

from __future__ import annotations

import errno
import glob
import os
import pwd
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

__all__ = ["MAX_FILE_SIZE", "LocalFiles"]

#: The largest file that is read, in bytes.
MAX_FILE_SIZE = 16 * 1_048_576


class LocalFiles:
    """svcd.interfaces.FileReader on the local file system."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}
        self._listed: dict[str, list[str]] = {}

    @property
    def user(self) -> str:
        """The user of this process; see FileReader."""
        number = os.geteuid()
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return str(number)

    def read(self, path: str) -> bytes:
        """Return the content of a regular file; see FileReader."""
        # open() itself refuses a directory.
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            data = file.read(MAX_FILE_SIZE + 1)
        if len(data) > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_SIZE} bytes")
        return data

    def read_together(self, paths: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """Return the contents of files that belong together; see FileReader."""
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
        """Return the paths in a directory; see FileReader."""
        try:
            # Path objects would normalize the text.
            found = self._listed[folder] = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]  # noqa: PTH118, PTH208
        except PermissionError:
            if folder not in self._listed:
                raise
            found = self._listed[folder]
        return found

    def file_stat(self, path: str) -> Hashable:
        """Return device, inode, times and size of the file, following links."""
        found = os.stat(path)  # noqa: PTH116 - as text, unchanged
        # The inode: a new file may have the same size and mtime. The ctime: it can't be set.
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def is_exposed(self, path: str) -> bool:
        """Return whether the mode of the file lets other users read or write it."""
        mode = os.stat(path).st_mode  # noqa: PTH116 - as text, unchanged
        return bool(mode & (stat.S_IROTH | stat.S_IWOTH))

    def matches(self, pattern: str) -> Sequence[str]:
        """Return the paths that match a glob pattern, sorted."""
        return sorted(glob.glob(pattern))  # noqa: PTH207 - as text, unchanged

    def identity(self, path: str) -> str:
        """Return the real path, following links."""
        return os.path.realpath(path)

    def is_directory(self, path: str) -> bool:
        """Return whether the path is a directory that can be entered and listed."""
        return os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)  # noqa: PTH112 - Path.is_dir raises


def _open_at_once(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK)
