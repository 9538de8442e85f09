"""Transports for any reactor that watches descriptors: those of Twisted with byte counters.

Twisted's transports have no hook for each write, and none right before the socket is closed. Only this module uses the
required private names of Twisted; tests/unit/test_private_names.py fails if a version of Twisted lacks one of them.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from svcd.net.stream_sockets import socket_traffic
from svcd.net.twisted_addresses import stream_address

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IProtocol

    from svcd.interfaces import AdoptConnection, FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["adopter", "open_stream"]

_DONE = Failure(ConnectionDone())


class _Counted:
    """Mixin that counts the bytes of a stream transport at the socket.

    Attributes:
        bytes_in: the bytes received from the client.
        bytes_out: the bytes written to the kernel for the client.
    """

    bytes_in = 0
    bytes_out = 0
    #: The repr() of Twisted's Server for a connection that no port has accepted.
    repstr = "<connection>"

    @property
    def writing(self) -> bool:
        """Whether there is unsent output."""
        return len(self.dataBuffer) > self.offset or bool(self._tempDataBuffer)  # type: ignore[attr-defined]

    def _dataReceived(self, data: bytes) -> Any:  # noqa: ANN401 - as Twisted has it
        self.bytes_in += len(data)
        return super()._dataReceived(data)  # type: ignore[misc]

    def writeSomeData(self, data: bytes) -> Any:  # noqa: ANN401 - a count, or the reason of the loss
        """Write as many bytes as the kernel takes; return their number, or the reason of the loss."""
        written = super().writeSomeData(data)  # type: ignore[misc]
        if isinstance(written, int) and written > 0:
            self.bytes_out += written
        return written


class _TCPTransport(_Counted, tcp.Server):  # type: ignore[misc]
    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and the bytes that its system has acknowledged; None after the end."""
        if not self.connected:
            return None
        return socket_traffic(self.socket)


class _UNIXTransport(_Counted, unix.Server):  # type: ignore[misc]
    _got_eof = False

    def readConnectionLost(self, reason: Failure) -> None:
        """Handle the end of input."""
        self._got_eof = True
        super().readConnectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection; at an orderly end poll(2) returns POLLHUP, which is a loss for Twisted."""
        sock = getattr(self, "socket", None)
        super().connectionLost(_DONE if self._got_eof and reason.check(ConnectionLost) else reason)
        if sock is not None:
            sock.close()

    def _closeSocket(self, _orderly: bool) -> None:
        """Do nothing: connectionLost() closes the socket after the protocol's, which may read it, as on uvloop."""

    @property
    def traffic(self) -> tuple[int, int]:
        """The bytes received from the client, and the bytes that the kernel has taken for it."""
        return self.bytes_in, self.bytes_out


class _Proxied:
    """Mixin for connections with a PROXY header: both addresses are from the header, which is not counted."""

    proxy_header: ProxyHeader
    source: IAddress

    def getPeer(self) -> IAddress:
        """Return the client's address."""
        return self.source

    def getHost(self) -> IAddress:
        """Return the address that the client connected to; the socket's own if the header has none."""
        destination = self.proxy_header.destination
        return super().getHost() if destination is None else stream_address(destination)  # type: ignore[misc]


class _ProxiedTCP(_Proxied, _TCPTransport):  # type: ignore[misc]
    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and the bytes that the proxy's system has acknowledged."""
        found = super().traffic
        return None if found is None else (found[0] - self.proxy_header.size, found[1])


class _ProxiedUNIX(_Proxied, _UNIXTransport):  # type: ignore[misc]
    pass


def open_stream(
    reactor: FdReactor,
    fd: int,
    sockaddr: Any,  # noqa: ANN401 - a socket address
    family: int,
    protocol: IProtocol,
    proxy_header: ProxyHeader | None = None,
    server: object = None,
    sessionno: int = 0,
) -> None:
    """Connect a protocol to a connected socket. Takes ownership of fd, also if this raises.

    Args:
        reactor: watches the socket.
        fd: the connected socket.
        sockaddr: the client's socket address.
        family: the family of the socket; with a PROXY header the family of the client may differ.
        protocol: the protocol; its makeConnection() is called at once.
        proxy_header: the PROXY header of the connection, if it has one.
        server: the port that accepted the connection; None if it was accepted elsewhere.
        sessionno: the number of the connection at that port.

    Raises:
        OSError: the client's network interface does not exist any more.
    """
    client = socket.socket(family, socket.SOCK_STREAM, fileno=fd)
    client.setblocking(False)
    local = family == socket.AF_UNIX
    try:
        address: Any = stream_address(sockaddr)
    except OSError:
        client.close()
        raise
    if proxy_header is None:
        kind: Any = _UNIXTransport if local else _TCPTransport
    else:
        kind = _ProxiedUNIX if local else _ProxiedTCP
    if isinstance(sockaddr, tuple):
        # In Twisted's transports the host includes the scope, and a UNIX socket has only a name.
        sockaddr = address.host if local else (address.host, *sockaddr[1:])
    transport = kind(client, protocol, sockaddr, server, sessionno, reactor)
    if proxy_header is not None:
        transport.proxy_header, transport.source = proxy_header, address
    try:
        protocol.makeConnection(transport)
    except BaseException:
        transport.abortConnection()
        raise


def adopter(reactor: FdReactor) -> AdoptConnection:
    """Return the function that connects a protocol to a connected socket: the reactor's own, if it has one."""
    return getattr(reactor, "adoptStream", None) or partial(open_stream, reactor)
