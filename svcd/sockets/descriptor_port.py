"""The listening port of a spawned service: it accepts, and hands the bare connection over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from svcd.sockets.base_port import BasePort, accepted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from svcd.interfaces import ConnectionHandler, FdReactor

__all__ = ["DescriptorPort"]


@implementer(IListeningPort)
class DescriptorPort(BasePort):
    """Accepts connections of a listening socket for somebody who wants their descriptors.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        take: gets the descriptor of each connection that is accepted here, its peer's socket address, and its family.
        may_accept: asked before each accept; when it says no the port rests until resume().
        short: called when the system is short of descriptors or memory.
        adopt: the same for connections that somebody else has accepted, with what a proxy has said of them if that is
            known; by default `take`.

    Attributes:
        adopt: as given.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        take: Callable[[int, Any, int], object],
        may_accept: Callable[[], int],
        short: Callable[[], None],
        adopt: ConnectionHandler | None = None,
    ) -> None:
        super().__init__(reactor, sock)
        self._take = take
        self.adopt = adopt or take
        self._may_accept = may_accept
        self._short = short
        self._family = int(sock.family)

    def _open(self) -> int:
        return self._may_accept() if self.connected else 0

    def resume(self) -> None:
        """Go on, but not while nobody may be accepted: who waits would wake the reactor again and again."""
        if self._may_accept():
            super().resume()

    def doRead(self) -> None:
        """Accept who waits."""
        for descriptor, peer in accepted(self.socket, self._open, self._short):
            try:
                self._take(descriptor, peer, self._family)
            except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
                self._log.failure("a connection could not be served")
        if not self._may_accept():
            self.pause()
