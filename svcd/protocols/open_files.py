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
#: The least number of bytes that a transport sends itself: below it the calls for that take longer than a copy.
_LEAST_PART = 131_072
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

    __slots__ = ("_bytes", "_file", "_files", "_offset", "_pieces", "_stop")

    def __init__(self, files: OpenFiles, file: _OpenFile, pieces: Iterable[bytes | ByteRange]) -> None:
        self._files = files
        self._file = file
        self._pieces = iter(pieces)
        # What remains of the range that is being sent.
        self._offset = self._stop = 0
        # The next piece, if it is bytes.
        self._bytes: bytes | None = None

    @property
    def uncounted(self) -> bool:
        """Whether the descriptor of the file is not counted yet."""
        return self._file.budget is None

    def count(self, budget: DescriptorCounter) -> None:
        """Take over a reserved place in the budget, and release it when the file is closed."""
        self._file.budget = budget

    def take_part(self) -> tuple[int, int, int] | None:
        """Skip what read() would read of the file next, for a transport that sends it itself.

        Returns:
            The descriptor, which stays open until close(), the position of the first byte, and the number of bytes;
            None if read() has to be called: for bytes that are not of the file, at the end, and for small parts.
        """
        self._advance()
        count = self._stop - self._offset
        if count < _LEAST_PART:
            return None
        part = self._file.descriptor, self._offset, count
        self._offset = self._stop
        return part

    def read(self) -> bytes:
        """Return the next piece; see svcd.protocols.http.response.Body."""
        self._advance()
        if self._bytes is not None:
            content, self._bytes = self._bytes, None
            return content
        missing = self._stop - self._offset
        content = os.pread(self._file.descriptor, min(_PIECE, missing), self._offset)
        if not content:
            raise OSError(errno.EIO, f"it became shorter while it was sent, {missing} bytes are missing")
        self._offset += len(content)
        return content

    def _advance(self) -> None:
        """Begin the next piece, if none has begun; at the end it is empty bytes."""
        if self._offset == self._stop and self._bytes is None:
            piece = next(self._pieces, b"")
            if isinstance(piece, bytes):
                self._bytes = piece
            else:
                self._offset, self._stop = piece

    def close(self) -> None:
        """Close the file, unless other responses send it."""
        self._files.release(self._file)
