"""A connection's descriptor as a socket, for those who set its options or ask it something."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Handle"]


class Handle(socket.socket):
    """A socket whose descriptor is uvloop's: closing it is asked of uvloop, and happens when that closes it.

    Attributes:
        let_go: asks uvloop to close the descriptor; None once that has happened.
    """

    __slots__ = ("let_go",)

    let_go: Callable[[], None] | None

    def close(self) -> None:
        """Have the connection closed, without a reset."""
        let_go, self.let_go = self.let_go, None
        if let_go is not None:
            let_go()
        self.detach()

    def forget(self) -> None:
        """The descriptor is gone."""
        self.let_go = None
        self.detach()

    def __del__(self) -> None:
        # Instead of socket's own, which closes the descriptor: the number may be another connection's by now.
        self.detach()

    def dup(self) -> socket.socket:  # type: ignore[override]
        """An ordinary socket for the same connection, which is the caller's to close."""
        return socket.fromfd(self.fileno(), self.family, self.type)
