"""Reports from Python handlers to their launcher that they close their connections."""

from __future__ import annotations

import contextlib
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CloseReports", "HandlerSocket"]

#: The layout of a report: the id of the connection, and whether it was closed (1) or detached (0).
_REPORT = struct.Struct("=Q?")
#: Maximum number of reports that one call of read() reads.
_BATCH = 64


class HandlerSocket(socket.socket):
    """Socket of a handler; it reports close() and detach() before they take effect.

    Attributes:
        on_close: called once, with the socket and True for close() or False for detach(); None for no report.
    """

    on_close: Callable[[socket.socket, bool], object] | None = None

    def detach(self) -> int:
        """Detach the descriptor; the caller owns it then."""
        self._report(closed=False)
        return super().detach()

    def _real_close(self, *arguments: object) -> None:
        # socket.socket calls this once the socket and all files made of it are closed.
        self._report(closed=True)
        super()._real_close(*arguments)  # type: ignore[misc]

    def _report(self, *, closed: bool) -> None:
        on_close, self.on_close = self.on_close, None
        if on_close is not None and self.fileno() >= 0:
            on_close(self, closed)


class CloseReports:
    """A socket pair for reports from handler processes to their launcher."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._reading.fileno()

    def reporter(self, connection_id: int) -> Callable[[socket.socket, bool], object]:
        """Return the HandlerSocket.on_close of a connection, in the process of its handler; close the other side."""
        self._reading.close()
        return partial(self._send, connection_id)

    def _send(self, connection_id: int, _sock: socket.socket, closed: bool) -> None:
        # Fails if the launcher has exited or is stopped.
        with contextlib.suppress(OSError):
            self._writing.send(_REPORT.pack(connection_id, closed), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Close both sides."""
        self._reading.close()
        self._writing.close()

    def read(self) -> Iterator[tuple[int, bool]]:
        """Yield the received reports: the id of a connection, and whether it was closed."""
        for _ in range(_BATCH):
            try:
                report = self._reading.recv(_REPORT.size + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if len(report) == _REPORT.size:
                yield _REPORT.unpack(report)
