"""TCP connections: addresses, options, and counts that the kernel keeps."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import ITCPTransport, ITLSTransport
from zope.interface import implementer

from svcd.net.tcp_info import socket_byte_counts, socket_traffic
from svcd.net.twisted_addresses import tcp_address
from svcd.reactor.starttls import StartTLS

if TYPE_CHECKING:
    from twisted.internet.address import IPv4Address, IPv6Address

__all__ = ["TCP6Transport", "TCPTransport"]


@implementer(ITCPTransport, ITLSTransport)
class TCPTransport(StartTLS):
    """A server's side of a TCP connection; TCP_NODELAY is as the listening socket has it."""

    __slots__ = ("_totals",)

    _family = socket.AF_INET

    def getHost(self) -> IPv4Address | IPv6Address:
        """Our side of the connection.

        Raises:
            AttributeError: the connection is gone.
        """
        if not hasattr(self, "_uv"):
            raise AttributeError("the connection is gone")
        sock = socket.SocketType(self._family, socket.SOCK_STREAM, 0, self._descriptor)
        try:
            return tcp_address(sock.getsockname())
        finally:
            sock.detach()

    def getTcpNoDelay(self) -> bool:
        """Whether small writes are sent at once."""
        return bool(self._raw_handle().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Say whether small writes are sent at once."""
        self._raw_handle().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    @property
    def bytes_in(self) -> int:
        """Bytes that came from the client; after connectionLost() what was asked for in it, else 0."""
        return self._counts()[0]

    @property
    def bytes_out(self) -> int:
        """Bytes handed to the kernel for the client; after connectionLost() what was asked for in it, else 0."""
        return self._counts()[1]

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None once the connection is gone.

        What waits to be acknowledged does not count: with a client that takes nothing both stand still.
        """
        if not self.connected:
            return None
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._descriptor)
        try:
            return socket_traffic(sock, client_closed=self._got_eof)
        finally:
            sock.detach()

    def _counts(self) -> tuple[int, int]:
        """Ask the kernel, which counts anyway (tcp(7), TCP_INFO; Linux 4.19)."""
        if not hasattr(self, "_uv") or (self.disconnected and hasattr(self, "_totals")):
            return getattr(self, "_totals", (0, 0))
        # A socket of C alone: three times as fast as a SocketHandle, which each connection would make for its log
        # line.
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._descriptor)
        try:
            counts = socket_byte_counts(sock, client_closed=self._got_eof, write_closed=self._eof_sent)
        finally:
            sock.detach()
        if counts is None:
            return 0, 0
        if self.disconnected:
            # It does not change any more, and soon can't be asked for.
            self._totals = counts
        return counts


class TCP6Transport(TCPTransport):
    """The same over IPv6."""

    __slots__ = ()

    _family = socket.AF_INET6

    @property
    def client(self) -> tuple[Any, ...]:
        """The client as Twisted's transports have it, a socket address."""
        peer = self._peer
        return peer.host, peer.port, peer.flowInfo, peer.scopeID
