"""Transports of connections with a PROXY header.

The peer of the socket is the proxy; the application gets the address of the client, from the header.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

from twisted.internet.address import IPv6Address

from svcd.net.twisted_addresses import tcp_address
from svcd.reactor.tcp import TCP6Transport, TCPTransport
from svcd.reactor.transport import UvTransport
from svcd.reactor.unix import UNIXTransport

__all__ = ["PROXIED_TRANSPORTS", "ProxyInfo"]


class ProxyInfo(Protocol):
    """Interface of a PROXY header for the reactor."""

    @property
    def size(self) -> int:
        """The length of the header, in bytes; the byte counts of the client exclude it."""
        ...

    @property
    def destination(self) -> Any:  # noqa: ANN401 - a socket address
        """The TCP socket address that the client connected to; None if the header has none."""
        ...


class _ProxiedTransport(UvTransport):
    """Base class of the transports of all families.

    Attributes:
        proxy_header: the PROXY header of the connection.
    """

    __slots__ = ()

    proxy_header: ProxyInfo

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - text
        """The client's host."""
        return self._peer.host

    @property
    def client(self) -> tuple[Any, ...]:
        """The client's socket address, as for Twisted's transports."""
        peer = self._peer
        ipv6 = isinstance(peer, IPv6Address)
        return (peer.host, peer.port, peer.flowInfo, peer.scopeID) if ipv6 else (peer.host, peer.port)

    def getHost(self) -> Any:  # noqa: ANN401 - the kind of address that there is
        """Return the address that the client connected to; the socket's own if the header has none."""
        destination = self.proxy_header.destination
        return super().getHost() if destination is None else tcp_address(destination)


class _ProxiedTCP(_ProxiedTransport, TCPTransport):
    __slots__ = ("proxy_header",)

    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and the bytes that the proxy's system has acknowledged."""
        found = super().traffic
        return None if found is None else (found[0] - self.proxy_header.size, found[1])

    def _counts(self) -> tuple[int, int]:
        received, sent = super()._counts()
        return max(received - self.proxy_header.size, 0), sent


class _ProxiedTCP6(_ProxiedTCP, TCP6Transport):
    __slots__ = ()


class _ProxiedUNIX(_ProxiedTransport, UNIXTransport):
    """Transport of a UNIX socket with a PROXY header; it counts the bytes that it reads, which exclude the header."""

    __slots__ = ("proxy_header",)


#: The classes of transports by the family of the socket.
PROXIED_TRANSPORTS: dict[int, Any] = {
    socket.AF_INET: _ProxiedTCP,
    socket.AF_INET6: _ProxiedTCP6,
    socket.AF_UNIX: _ProxiedUNIX,
}
