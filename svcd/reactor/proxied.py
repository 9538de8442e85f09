"""Connections of clients that come by way of somebody who has said, in bytes before theirs, who they are.

What the socket knows is that somebody's address; what an application asks for is the client's.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from twisted.internet.address import IPv6Address

from svcd.net.twisted_addresses import tcp_address
from svcd.reactor.tcp import TCP6Transport, TCPTransport
from svcd.reactor.transport import UvTransport
from svcd.reactor.unix import UNIXTransport

__all__ = ["RELAYED", "Relay"]


class Relay(Protocol):
    """What was said."""

    @property
    def size(self) -> int:
        """How many bytes of the connection said it; they are not counted as the client's."""
        ...

    @property
    def destination(self) -> Any:  # noqa: ANN401 - a socket address
        """Our side as the client knows it, a socket address of TCP; None if it is the socket's own."""
        ...


class _Relayed(UvTransport):
    """The part that all of them have.

    Attributes:
        relay: what was said.
    """

    __slots__ = ()

    relay: Relay

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - text
        """The client's host."""
        return self._peer.host

    @property
    def client(self) -> tuple[Any, ...]:
        """The client as Twisted's transports have it, a socket address."""
        peer = self._peer
        wide = isinstance(peer, IPv6Address)
        return (peer.host, peer.port, peer.flowInfo, peer.scopeID) if wide else (peer.host, peer.port)

    def getHost(self) -> Any:  # noqa: ANN401 - the kind of address that there is
        """Our side of the connection, as the client knows it."""
        destination = self.relay.destination
        return super().getHost() if destination is None else tcp_address(destination)


class _RelayedTCP(_Relayed, TCPTransport):
    __slots__ = ("relay",)

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its side has taken."""
        found = super().traffic
        return None if found is None else (found[0] - self.relay.size, found[1])

    def _counts(self) -> tuple[int, int]:
        received, sent = super()._counts()
        return max(received - self.relay.size, 0), sent


class _RelayedTCP6(_RelayedTCP, TCP6Transport):
    __slots__ = ()


class _RelayedUNIX(_Relayed, UNIXTransport):
    """What is counted here is counted when it is read, so what came before is not."""

    __slots__ = ("relay",)


#: By the family of the socket.
RELAYED: dict[int, Any] = {
    socket.AF_INET: _RelayedTCP,
    socket.AF_INET6: _RelayedTCP6,
    socket.AF_UNIX: _RelayedUNIX,
}
