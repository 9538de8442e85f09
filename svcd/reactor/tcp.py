"""TCP transports: addresses, options, and the kernel's byte counters."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import ITCPTransport, ITLSTransport
from zope.interface import implementer

from svcd.net.stream_sockets import COUNTS_BYTES, byte_counts, consistent_info, socket_traffic
from svcd.net.twisted_addresses import tcp_address
from svcd.reactor.file_output import FileOutput
from svcd.reactor.starttls import StartTLS

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.address import IPv4Address, IPv6Address

__all__ = ["TCP6Transport", "TCPTransport"]


@implementer(ITCPTransport, ITLSTransport)
class TCPTransport(StartTLS):
    """Transport of an IPv4 connection; it inherits TCP_NODELAY from the listening socket."""

    __slots__ = ("_totals",)

    _family = socket.AF_INET

    def getHost(self) -> IPv4Address | IPv6Address:
        """Return the local address of the connection.

        Raises:
            AttributeError: the connection is gone.
        """
        if not hasattr(self, "_uv"):
            raise AttributeError("the connection is gone")
        sock = socket.SocketType(self._family, socket.SOCK_STREAM, 0, self._fd)
        try:
            return tcp_address(sock.getsockname())
        finally:
            sock.detach()

    def getTcpNoDelay(self) -> bool:
        """Return whether small writes are sent at once (TCP_NODELAY)."""
        return bool(self._raw_handle().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set whether small writes are sent at once (TCP_NODELAY)."""
        self._raw_handle().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def send_file(self, part: tuple[int, int, int], failed: Callable[[OSError], None]) -> FileOutput:
        """Send a part of a file, after the output so far, without a copy into this process; return what is sent.

        The connection must not have ended. The push producer, which must be registered, is paused, and resumed when
        the part is sent. Until then nothing else may be written, and the file must stay open.

        Args:
            part: the descriptor of a regular file, the position of the first byte, and the number of bytes.
            failed: called with the reason if the file has fewer bytes or can't be read. The transport sends nothing
                more: the connection has to be aborted.
        """
        self.file_output = output = FileOutput(self, self._uv, self._fd, part, failed)
        self._uv.set_write_buffer_limits(0)
        self.producer.pauseProducing()
        if not self._uv.get_write_buffer_size():
            self._call_soon(output.run)
        return output

    def file_sent(self) -> None:
        """Resume the producer after a part of a file."""
        self.file_output = None
        self._uv.set_write_buffer_limits()
        if self.producer is not None:
            self._call(self.producer.resumeProducing)

    @property
    def bytes_in(self) -> int:
        """The bytes received from the client; after connectionLost() the value that was read in it, or 0."""
        return self._counts()[0]

    @property
    def bytes_out(self) -> int:
        """The bytes written to the kernel; after connectionLost() the value that was read in it, or 0."""
        return self._counts()[1]

    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and the bytes that its system has acknowledged; None after the end.

        Bytes that are not acknowledged do not count, so both numbers are constant while a client reads nothing.
        """
        if not self.connected:
            return None
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._fd)
        try:
            return socket_traffic(sock, client_closed=self._got_eof)
        finally:
            sock.detach()

    def _counts(self) -> tuple[int, int]:
        """Return bytes_in and bytes_out from the kernel's counters (tcp(7), TCP_INFO; Linux 4.19)."""
        if not hasattr(self, "_uv") or (self.disconnected and hasattr(self, "_totals")):
            return getattr(self, "_totals", (0, 0))
        # The C class of sockets is three times as fast as a SocketHandle, which each connection would make for its log
        # line.
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self._fd)
        try:
            if self.disconnected and not self._got_eof:
                info = consistent_info(sock)
            else:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTS_BYTES)
        finally:
            sock.detach()
        counts = byte_counts(info, client_closed=self._got_eof, write_closed=self._eof_sent)
        if counts is None:
            return 0, 0
        if self.disconnected:
            # The counts are final, and the descriptor will be closed soon.
            self._totals = counts
        return counts


class TCP6Transport(TCPTransport):
    """Transport of an IPv6 connection."""

    __slots__ = ()

    _family = socket.AF_INET6

    @property
    def client(self) -> tuple[Any, ...]:
        """The client's socket address, as for Twisted's transports."""
        peer = self._peer
        return peer.host, peer.port, peer.flowInfo, peer.scopeID
