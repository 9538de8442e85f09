"""Connected sockets on any reactor that watches descriptors: their bytes are counted."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from svcd.net.tcp_info import socket_traffic
from svcd.net.twisted_addresses import stream_address

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IProtocol

    from svcd.interfaces import AdoptConnection, FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["adopter", "open_stream"]

_DONE = Failure(ConnectionDone())


class _Counted:
    """Counts what a stream transport carries, where it touches the socket.

    Attributes:
        bytes_in: received from the client.
        bytes_out: handed to the kernel for the client.
    """

    bytes_in = 0
    bytes_out = 0
    #: What Twisted's Server is called that no port has accepted.
    repstr = "<connection>"

    @property
    def writing(self) -> bool:
        """Whether output waits."""
        return len(self.dataBuffer) > self.offset or bool(self._tempDataBuffer)  # type: ignore[attr-defined]

    def _dataReceived(self, data: bytes) -> Any:  # noqa: ANN401 - as Twisted has it
        self.bytes_in += len(data)
        return super()._dataReceived(data)  # type: ignore[misc]

    def writeSomeData(self, data: bytes) -> Any:  # noqa: ANN401 - a count, or the reason of the end
        """Write what the kernel takes."""
        written = super().writeSomeData(data)  # type: ignore[misc]
        if isinstance(written, int) and written > 0:
            self.bytes_out += written
        return written


class _TCPTransport(_Counted, tcp.Server):  # type: ignore[misc]
    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None once the connection is gone."""
        if not self.connected:
            return None
        return socket_traffic(self.socket)


class _UNIXTransport(_Counted, unix.Server):  # type: ignore[misc]
    _heard_all = False

    def readConnectionLost(self, reason: Failure) -> None:
        """The client will send no more."""
        self._heard_all = True
        super().readConnectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """It is gone. At a UNIX socket's orderly end poll(2) says POLLHUP, which Twisted takes for a loss."""
        sock = getattr(self, "socket", None)
        super().connectionLost(_DONE if self._heard_all and reason.check(ConnectionLost) else reason)
        if sock is not None:
            sock.close()

    def _closeSocket(self, _orderly: bool) -> None:
        """Not before the protocol has heard of the end: until then it may read what is left, as on the uv reactor."""

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that came from the client, and bytes that the kernel has taken for it."""
        return self.bytes_in, self.bytes_out


class _Relayed:
    """The client came by way of a proxy: both ends are as its header says, and that does not count as the client's."""

    relay: ProxyHeader
    source: IAddress

    def getPeer(self) -> IAddress:
        """The client."""
        return self.source

    def getHost(self) -> IAddress:
        """Our side, as the client knows it."""
        destination = self.relay.destination
        return super().getHost() if destination is None else stream_address(destination)  # type: ignore[misc]


class _RelayedTCP(_Relayed, _TCPTransport):  # type: ignore[misc]
    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its side has taken."""
        found = super().traffic
        return None if found is None else (found[0] - self.relay.size, found[1])


class _RelayedUNIX(_Relayed, _UNIXTransport):  # type: ignore[misc]
    pass


def open_stream(
    reactor: FdReactor,
    descriptor: int,
    name: Any,  # noqa: ANN401 - a socket address
    family: int,
    protocol: IProtocol,
    relay: ProxyHeader | None = None,
    server: object = None,
    number: int = 0,
) -> None:
    """Let a protocol have a connected socket.

    Args:
        reactor: watches it.
        descriptor: ours to close from now on.
        name: the client's socket address.
        family: of the socket; the client's may be another with a relay.
        protocol: told of its transport at once.
        relay: what a proxy has said of the connection.
        server: the port that accepted it.
        number: its number there.

    Raises:
        OSError: the client's network interface is gone.
    """
    client = socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)
    client.setblocking(False)
    local = family == socket.AF_UNIX
    try:
        address: Any = stream_address(name)
    except OSError:
        client.close()
        raise
    if relay is None:
        kind: Any = _UNIXTransport if local else _TCPTransport
    else:
        kind = _RelayedUNIX if local else _RelayedTCP
    if isinstance(name, tuple):
        # Twisted has the scope in the host as well, and of a UNIX socket's client no more than a name.
        name = address.host if local else (address.host, *name[1:])
    transport = kind(client, protocol, name, server, number, reactor)
    if relay is not None:
        transport.relay, transport.source = relay, address
    try:
        protocol.makeConnection(transport)
    except BaseException:
        transport.abortConnection()
        raise


def adopter(reactor: FdReactor) -> AdoptConnection:
    """What lets a protocol have a connected socket. A reactor may have better transports than those for all of them."""
    return getattr(reactor, "adoptStream", None) or partial(open_stream, reactor)
