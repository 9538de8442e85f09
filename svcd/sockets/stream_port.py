"""Listening ports for any reactor that watches descriptors: they count bytes, rest, and never turn a client away.

Twisted's own ports close clients when descriptors run out, log every port twice, and drop the scope of an IPv6 peer.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.net.peer_credentials import unix_peer
from svcd.sockets.base_port import BasePort, accepted
from svcd.sockets.epoll_transports import address_of, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IProtocolFactory

    from svcd.interfaces import FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["StreamPort"]


@implementer(IListeningPort)
class StreamPort(BasePort):
    """Accepts connections of a listening socket.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        factory: builds the protocols.
        may_accept: asked before each accept.
        short: called when the system is short of descriptors or memory.
    """

    # What Twisted's Server reads of its port, for its repr.
    _realPortNumber: int | None = None

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        short: Callable[[], None],
    ) -> None:
        super().__init__(reactor, sock)
        self._factory = factory
        self._may_accept = may_accept
        self._short = short
        self._number = 0

    def resume(self) -> None:
        """Go on, but not while nobody may be accepted: who waits would wake the reactor again and again."""
        if self._may_accept():
            super().resume()

    def _open(self) -> int:
        return self._may_accept() if self.connected else 0

    def doRead(self) -> None:
        """Accept who waits."""
        family = self.socket.family
        for descriptor, peer in accepted(self.socket, self._open, self._short):
            try:
                self.adopt(descriptor, peer, family)
            except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
                self._log.failure("a connection could not be served")

    def adopt(self, descriptor: int, peer: Any, family: int, relay: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection, whoever accepted it; its descriptor is the port's to close from now on.

        Args:
            descriptor: of a stream socket.
            peer: the client.
            family: of the socket; the client's may be another with a relay.
            relay: what a proxy has said of the connection.
        """
        try:
            local = family == socket.AF_UNIX and not isinstance(peer, tuple)
            protocol = self._factory.buildProtocol(unix_peer(descriptor, peer) if local else address_of(peer))
        except BaseException:
            os.close(descriptor)
            raise
        if protocol is None:
            os.close(descriptor)
            return
        self._number += 1
        open_stream(self.reactor, descriptor, peer, family, protocol, relay, self, self._number)
