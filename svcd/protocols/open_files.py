"""Open files that are sent: a file has one descriptor, however many answers are made from it at the same time.

So slow readers of a file take a descriptor each for their connections, and one together for the file. A file that was
changed or replaced since it was opened is another one.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from svcd.interfaces import DescriptorCounter

__all__ = ["FileBody", "OpenFiles"]

#: Bytes read and written at once.
_PIECE = 65_536
#: Device, inode, size, and the times of the last changes of content and inode.
_Key: TypeAlias = "tuple[int, int, int, int, int]"


class _OpenFile:
    """A file that is open, and how many answers are made from it."""

    __slots__ = ("budget", "descriptor", "key", "users")

    def __init__(self, key: _Key, descriptor: int) -> None:
        self.key = key
        self.descriptor = descriptor
        self.users = 0
        # What the descriptor is counted in, once it is.
        self.budget: DescriptorCounter | None = None


class OpenFiles:
    """The files that are being sent."""

    def __init__(self) -> None:
        self._open: dict[_Key, _OpenFile] = {}

    def body(self, descriptor: int, status: os.stat_result) -> FileBody:
        """Return the content of a file for one answer.

        Args:
            descriptor: of the file; it is closed here, now or with the last answer that is made from it.
            status: of the file.
        """
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _OpenFile(key, descriptor)
        else:
            os.close(descriptor)
        found.users += 1
        return FileBody(self, found, status.st_size)

    def leave(self, file: _OpenFile) -> None:
        """Close a file with the last answer that is made from it."""
        file.users -= 1
        if file.users:
            return
        del self._open[file.key]
        os.close(file.descriptor)
        if file.budget is not None:
            file.budget.release()


class FileBody:
    """The content of an open file, as long as it was when its length was said.

    Args:
        files: the files that are open.
        file: the one to send.
        length: how much of it to send, in bytes.
    """

    __slots__ = ("_file", "_files", "_left", "_offset")

    def __init__(self, files: OpenFiles, file: _OpenFile, length: int) -> None:
        self._files = files
        self._file = file
        self._left = length
        self._offset = 0

    @property
    def uncounted(self) -> bool:
        """Whether the descriptor of the file is not counted yet."""
        return self._file.budget is None

    def count(self, budget: DescriptorCounter) -> None:
        """Take over a descriptor that was counted in a budget: it is released when the file is closed."""
        self._file.budget = budget

    def read(self) -> bytes:
        """The next piece; see svcd.protocols.http.response.Body."""
        if not self._left:
            return b""
        piece = os.pread(self._file.descriptor, min(_PIECE, self._left), self._offset)
        if not piece:
            raise OSError(errno.EIO, f"it became shorter while it was sent, {self._left} bytes are missing")
        self._left -= len(piece)
        self._offset += len(piece)
        return piece

    def close(self) -> None:
        """Close the file, unless other answers are made from it."""
        self._files.leave(self._file)
