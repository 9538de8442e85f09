"""Listening ports for any reactor that watches descriptors: they count bytes, rest, and never turn a client away.

Twisted's own ports close clients when descriptors run out, log every port twice, and drop the scope of an IPv6 peer.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.transport.port import Port, accepted
from svcd.wire.tcpinfo import SIZE as TCP_INFO_BYTES
from svcd.wire.tcpinfo import traffic as tcp_traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IProtocolFactory

    from svcd.interfaces import Watcher
    from svcd.wire.proxy import Header

__all__ = ["StreamPort"]


_DONE = Failure(ConnectionDone())


class _Counted:
    """Counts what a stream transport carries, where it touches the socket.

    Attributes:
        bytes_in: received from the client.
        bytes_out: handed to the kernel for the client.
    """

    bytes_in = 0
    bytes_out = 0

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
        return tcp_traffic(self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES))


class _UNIXTransport(_Counted, unix.Server):  # type: ignore[misc]
    _heard_all = False

    def readConnectionLost(self, reason: Failure) -> None:
        """The client will send no more."""
        self._heard_all = True
        super().readConnectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """It is gone. At a UNIX socket's orderly end poll(2) says POLLHUP, which Twisted takes for a loss."""
        super().connectionLost(_DONE if self._heard_all and reason.check(ConnectionLost) else reason)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that came from the client, and bytes that the kernel has taken for it."""
        return self.bytes_in, self.bytes_out


def _address(name: Any) -> IAddress:  # noqa: ANN401 - a socket address
    """As Twisted has it, with the scope of a link-local one, which its address means nothing without."""
    if len(name) == 2:
        return IPv4Address("TCP", *name)
    host, port, flow, scope = name
    return IPv6Address("TCP", f"{host}%{socket.if_indextoname(scope)}" if scope else host, port, flow, scope)


class _Relayed:
    """The client came by way of a proxy: both ends are as its header says, and that does not count as the client's."""

    relay: Header
    source: IAddress

    def getPeer(self) -> IAddress:
        """The client."""
        return self.source

    def getHost(self) -> IAddress:
        """Our side, as the client knows it."""
        destination = self.relay.destination
        return super().getHost() if destination is None else _address(destination)  # type: ignore[misc]


class _RelayedTCP(_Relayed, _TCPTransport):  # type: ignore[misc]
    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its side has taken."""
        found = super().traffic
        return None if found is None else (found[0] - self.relay.size, found[1])


class _RelayedUNIX(_Relayed, _UNIXTransport):  # type: ignore[misc]
    pass


@implementer(IListeningPort)
class StreamPort(Port):
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
        reactor: Watcher,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], bool],
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

    def doRead(self) -> None:
        """Accept who waits."""
        family = self.socket.family
        for descriptor, peer in accepted(self.socket, lambda: self.connected and self._may_accept(), self._short):
            try:
                self.adopt(descriptor, peer, family)
            except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
                self._log.failure("a connection could not be served")

    def adopt(self, descriptor: int, peer: Any, family: int, relay: Header | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection, whoever accepted it; its descriptor is the port's to close from now on.

        Args:
            descriptor: of a stream socket.
            peer: the client.
            family: of the socket; the client's may be another with a relay.
            relay: what a proxy has said of the connection.
        """
        client = socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)
        client.setblocking(False)
        try:
            address: Any = _address(peer) if isinstance(peer, tuple) else UNIXAddress(peer or None)
            protocol = self._factory.buildProtocol(address)
        except BaseException:
            client.close()
            raise
        if protocol is None:
            client.close()
            return
        self._number += 1
        local = family == socket.AF_UNIX
        if relay is None:
            kind: Any = _UNIXTransport if local else _TCPTransport
        else:
            kind = _RelayedUNIX if local else _RelayedTCP
        if isinstance(peer, tuple):
            # Twisted has the scope in the host as well, and of a UNIX socket's client no more than a name.
            peer = address.host if local else (address.host, *peer[1:])
        transport = kind(client, protocol, peer, self, self._number, self.reactor)
        if relay is not None:
            transport.relay, transport.source = relay, address
        try:
            protocol.makeConnection(transport)
        except BaseException:
            transport.abortConnection()
            raise
