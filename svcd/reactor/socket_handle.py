"""Socket object of a connection's descriptor, for options and queries."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SocketHandle"]


class SocketHandle(socket.socket):
    """Socket object for a descriptor that uvloop owns; close() closes the connection through uvloop.

    Attributes:
        close_callback: makes uvloop close the descriptor; None after uvloop has closed it.
    """

    __slots__ = ("close_callback",)

    close_callback: Callable[[], None] | None

    def close(self) -> None:
        """Close the connection, without a reset."""
        close_callback, self.close_callback = self.close_callback, None
        if close_callback is not None:
            close_callback()
        self.detach()

    def forget(self) -> None:
        """Detach from the descriptor, which uvloop has closed or is about to close."""
        self.close_callback = None
        self.detach()

    def __del__(self) -> None:
        # The method of socket.socket would close the descriptor, whose number another connection may have by now.
        self.detach()

    def dup(self) -> socket.socket:  # type: ignore[override]
        """Return an ordinary socket for the same connection; the caller owns it."""
        return socket.fromfd(self.fileno(), self.family, self.type)
