"""A connection's descriptor as a socket object, for options and queries."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SocketHandle"]


class SocketHandle(socket.socket):
    """A socket object for a descriptor that uvloop owns; closing it closes the connection through uvloop.

    Attributes:
        close_callback: makes uvloop close the descriptor; None once that has happened.
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
        """Detach from the descriptor, which uvloop has closed or closes now."""
        self.close_callback = None
        self.detach()

    def __del__(self) -> None:
        # Instead of socket's own, which closes the descriptor: the number may be another connection's by now.
        self.detach()

    def dup(self) -> socket.socket:  # type: ignore[override]
        """Return an ordinary socket for the same connection, which the caller closes."""
        return socket.fromfd(self.fileno(), self.family, self.type)
