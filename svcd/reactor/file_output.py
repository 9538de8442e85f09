"""Output of a part of a file, which the kernel sends without a copy into this process (sendfile(2))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable

__all__ = ["FileOutput"]

#: The largest number of bytes that are sent before the loop serves other connections.
_BURST = 1_048_576
#: The size of a read, in bytes, where sendfile(2) does not work, and where the connection takes nothing now: the latter
#: is small, since it is copied only to be told when the connection takes more.
_PIECE, _SMALL_PIECE = 65_536, 4096
#: Errors of sendfile(2) that mean that it does not work: the connection has ended, or the file has no pages to send. A
#: write follows, which tells uvloop that the connection has ended.
_NOT_SENT = frozenset({errno.EINTR, errno.EPIPE, errno.ECONNRESET, errno.EINVAL, errno.ENOSYS,
                       errno.ENOTCONN, errno.EOVERFLOW, errno.ENOMEM})  # fmt: skip


class _Owner(Protocol):
    """A transport that sends a file.

    Attributes:
        file_output: what it sends.
    """

    file_output: FileOutput | None

    def file_sent(self) -> None:
        """Continue with other output."""

    def _call_soon(self, callback: Callable[[], None]) -> None: ...


class FileOutput:
    """A part of a file that is being sent.

    uvloop does not tell when the connection takes data again, unless there is data in its own buffer. So when the
    kernel takes no more, a piece of the file is written through uvloop, and sendfile(2) goes on when it has been sent.

    Args:
        owner: the transport.
        stream: its uvloop transport, with a buffer limit of 0.
        socket: the descriptor of the connection.
        part: the descriptor of the file, the position of the first byte, and the number of bytes.
        failed: called with the reason if the file has fewer bytes or can't be read; the transport sends nothing more.

    Attributes:
        remaining: the number of bytes that are not sent yet.
    """

    __slots__ = ("_failed", "_file", "_offset", "_owner", "_socket", "_stream", "remaining")

    def __init__(
        self,
        owner: _Owner,
        stream: Transport,
        socket: int,
        part: tuple[int, int, int],
        failed: Callable[[OSError], None],
    ) -> None:
        self._owner = owner
        self._stream = stream
        self._socket = socket
        self._file, self._offset, self.remaining = part
        self._failed = failed

    def run(self) -> None:
        """Send more; the buffer of uvloop is empty."""
        if self._owner.file_output is not self:
            # The connection has ended meanwhile.
            return
        if not self.remaining:
            self._owner.file_sent()
            return
        try:
            if self._send():
                self._owner._call_soon(self.run)  # noqa: SLF001 - the two classes are one transport
        except OSError as error:
            self._failed(error)

    def _send(self) -> bool:
        """Send more; return whether the kernel has all of it, otherwise uvloop calls when it does."""
        try:
            sent = os.sendfile(self._socket, self._file, self._offset, min(self.remaining, _BURST))
        except BlockingIOError:
            return self._write(_SMALL_PIECE)
        except OSError as error:
            if error.errno in _NOT_SENT:
                return self._write(_PIECE)
            raise
        self._advance(sent)
        return True

    def _write(self, size: int) -> bool:
        piece = os.pread(self._file, min(self.remaining, size), self._offset)
        self._advance(len(piece))
        self._stream.write(piece)
        return not self._stream.get_write_buffer_size()

    def _advance(self, sent: int) -> None:
        if not sent:
            raise OSError(errno.EIO, f"it became shorter while it was sent, {self.remaining} bytes are missing")
        self._offset += sent
        self.remaining -= sent
