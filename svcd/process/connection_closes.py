"""Reports of Python handlers about their connections: a process tells its launcher when it closes its socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CloseReports", "HandlerSocket"]

#: The number of a connection, and whether it was closed; else it was detached.
_REPORT = struct.Struct("=Q?")
#: Reports read in one go.
_BATCH = 64


class HandlerSocket(socket.socket):
    """The connection of a handler: what the handler does with it is reported before it is done.

    Attributes:
        leaving: called once with the socket, and whether it is closed (True) or detached (False); None for no need.
    """

    on_close: Callable[[socket.socket, bool], object] | None = None

    def detach(self) -> int:
        """Give the descriptor to other code."""
        self._report(closed=False)
        return super().detach()

    def _real_close(self, *arguments: object) -> None:
        # socket.socket calls it when neither the socket nor a file made of it is open any more.
        self._report(closed=True)
        super()._real_close(*arguments)  # type: ignore[misc]

    def _report(self, *, closed: bool) -> None:
        leaving, self.on_close = self.on_close, None
        if leaving is not None and self.fileno() >= 0:
            leaving(self, closed)


class CloseReports:
    """The way of these reports from the processes of handlers to their launcher."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._reading.fileno()

    def reporter(self, connection_id: int) -> Callable[[socket.socket, bool], object]:
        """Return, in the process of a handler, what reports about its connection; the launcher's side is closed."""
        self._reading.close()
        return partial(self._send, connection_id)

    def _send(self, connection_id: int, _sock: socket.socket, closed: bool) -> None:
        # A launcher that is gone, or stands still, has no use for it.
        with contextlib.suppress(OSError):
            self._writing.send(_REPORT.pack(connection_id, closed), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Take no more reports."""
        self._reading.close()
        self._writing.close()

    def read(self) -> Iterator[tuple[int, bool]]:
        """Yield what was reported: the number of a connection, and whether it was closed."""
        for _ in range(_BATCH):
            try:
                report = self._reading.recv(_REPORT.size + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if len(report) == _REPORT.size:
                yield _REPORT.unpack(report)
