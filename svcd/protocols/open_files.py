"""Open files of HTTP responses: all responses that send the same file at the same time share a descriptor.

So slow clients of a file need a descriptor for each connection, but only one for the file. A file that was changed or
replaced since it was opened counts as another file.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcd.interfaces import DescriptorCounter
    from svcd.wire.http_ranges import ByteRange

__all__ = ["FileBody", "OpenFiles"]

#: The size of a read, in bytes.
_PIECE = 65_536
#: Device, inode, size, and the times of the last changes of content and inode.
_Key: TypeAlias = "tuple[int, int, int, int, int]"


class _OpenFile:
    """An open file, with the number of responses that send it."""

    __slots__ = ("budget", "descriptor", "key", "users")

    def __init__(self, key: _Key, descriptor: int) -> None:
        self.key = key
        self.descriptor = descriptor
        self.users = 0
        # The budget that the descriptor is counted in; None until it is counted.
        self.budget: DescriptorCounter | None = None


class OpenFiles:
    """The files that are being sent."""

    def __init__(self) -> None:
        self._open: dict[_Key, _OpenFile] = {}

    def body(self, descriptor: int, status: os.stat_result, pieces: Iterable[bytes | ByteRange]) -> FileBody:
        """Return parts of a file as the body of a response. Takes ownership of the descriptor.

        Args:
            descriptor: the descriptor of the file.
            status: the status of the file.
            pieces: bytes to send as they are, and ranges of the file.
        """
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _OpenFile(key, descriptor)
        else:
            os.close(descriptor)
        found.users += 1
        return FileBody(self, found, pieces)

    def release(self, file: _OpenFile) -> None:
        """Decrement the use count of a file; close the file when it is 0."""
        file.users -= 1
        if file.users:
            return
        del self._open[file.key]
        os.close(file.descriptor)
        if file.budget is not None:
            file.budget.release()


class FileBody:
    """Parts of an open file, with the lengths that the head of the response has.

    Args:
        files: the open files.
        file: the file to send.
        pieces: bytes to send as they are, and ranges of the file.
    """

    __slots__ = ("_file", "_files", "_offset", "_pieces", "_stop")

    def __init__(self, files: OpenFiles, file: _OpenFile, pieces: Iterable[bytes | ByteRange]) -> None:
        self._files = files
        self._file = file
        self._pieces = iter(pieces)
        # What remains of the range that is being sent.
        self._offset = self._stop = 0

    @property
    def uncounted(self) -> bool:
        """Whether the descriptor of the file is not counted yet."""
        return self._file.budget is None

    def count(self, budget: DescriptorCounter) -> None:
        """Take over a reserved place in the budget, and release it when the file is closed."""
        self._file.budget = budget

    def read(self) -> bytes:
        """Return the next piece; see svcd.protocols.http.response.Body."""
        while self._offset == self._stop:
            piece = next(self._pieces, b"")
            if isinstance(piece, bytes):
                return piece
            self._offset, self._stop = piece
        missing = self._stop - self._offset
        content = os.pread(self._file.descriptor, min(_PIECE, missing), self._offset)
        if not content:
            raise OSError(errno.EIO, f"it became shorter while it was sent, {missing} bytes are missing")
        self._offset += len(content)
        return content

    def close(self) -> None:
        """Close the file, unless other responses send it."""
        self._files.release(self._file)
