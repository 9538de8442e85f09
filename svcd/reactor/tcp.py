"""TCP connections: addresses, options, and counts that the kernel keeps."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import ITCPTransport, ITLSTransport
from zope.interface import implementer

from svcd.reactor.starttls import StartTLS

__all__ = ["TCP6Transport", "TCPTransport", "tcp_address"]

# Of struct tcp_info (linux/tcp.h): state, bytes received, bytes not sent yet, bytes sent, bytes sent again.
_TCP_INFO = struct.Struct("=B127xQ8xI52xQQ")
# The same up to what came: state, bytes that the client's system has acknowledged, bytes received.
_MOVED = struct.Struct("=B119xQQ")
# States of a connection whose client has closed its side, and whose own side is closed (net/tcp_states.h).
_TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 6, 8, 9, 11
_CLIENT_CLOSED = frozenset({_TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING})


def tcp_address(name: Any) -> IPv4Address | IPv6Address:  # noqa: ANN401 - a socket address
    """An address as Twisted has it, with the scope of a link-local one, which means nothing without (RFC 4007)."""
    if len(name) == 2:
        return IPv4Address("TCP", *name)
    host, port, flow, scope = name
    if scope and "%" not in host:
        host = f"{host}%{socket.if_indextoname(scope)}"
    return IPv6Address("TCP", host, port, flow, scope)


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
            data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MOVED.size)
        finally:
            sock.detach()
        if len(data) < _MOVED.size:
            # Before Linux 4.1.
            return None
        state, taken, received = _MOVED.unpack(data)
        return received - (self._got_eof or state in _CLIENT_CLOSED), taken

    def _counts(self) -> tuple[int, int]:
        """Ask the kernel, which counts anyway (tcp(7), TCP_INFO; Linux 4.19)."""
        if not hasattr(self, "_uv") or (self.disconnected and hasattr(self, "_totals")):
            return getattr(self, "_totals", (0, 0))
        # A socket of C alone: three times as fast as a Handle, which each connection would have made for its log line.
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._descriptor)
        try:
            data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        finally:
            sock.detach()
        if len(data) < _TCP_INFO.size:
            # An older kernel, which does not count what is sent.
            return 0, 0
        state, received, waiting, sent, again = _TCP_INFO.unpack(data)
        # A FIN takes a number in the sequence, and the kernel counts it as a byte: the client's when it came, and
        # ours as long as it waits.
        received -= self._got_eof or state in _CLIENT_CLOSED
        waiting -= bool(waiting and self._said_eof)
        found = received, sent - again + waiting
        if self.disconnected:
            # It does not change any more, and soon can't be asked for.
            self._totals = found
        return found


class TCP6Transport(TCPTransport):
    """The same over IPv6."""

    __slots__ = ()

    _family = socket.AF_INET6

    @property
    def client(self) -> tuple[Any, ...]:
        """The client as Twisted's transports have it, a socket address."""
        peer = self._peer
        return peer.host, peer.port, peer.flowInfo, peer.scopeID
