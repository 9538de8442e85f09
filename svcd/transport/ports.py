"""Listening ports for any reactor that watches descriptors: they count bytes, rest, and never turn a client away.

Twisted's own ports close clients when descriptors run out, log every port twice, and drop the scope of an IPv6 peer.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.transport.port import Port, accepted
from svcd.wire.tcpinfo import SIZE as TCP_INFO_BYTES
from svcd.wire.tcpinfo import traffic as tcp_traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IProtocolFactory

    from svcd.interfaces import Watcher

__all__ = ["StreamPort"]


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
    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that came from the client, and bytes that the kernel has taken for it."""
        return self.bytes_in, self.bytes_out


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

    def adopt(self, descriptor: int, peer: Any, family: int) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection, whoever accepted it; its descriptor is the port's to close from now on."""
        client = socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)
        client.setblocking(False)
        local = family == socket.AF_UNIX
        address: IAddress
        if local:
            address = UNIXAddress(peer or None)
        elif len(peer) == 4:
            # With the scope of a link-local peer, which its address means nothing without.
            host = peer[0]
            if peer[3]:
                host = f"{host}%{socket.if_indextoname(peer[3])}"
                peer = (host, *peer[1:])
            address = IPv6Address("TCP", host, *peer[1:])
        else:
            address = IPv4Address("TCP", *peer)
        try:
            protocol = self._factory.buildProtocol(address)
        except BaseException:
            client.close()
            raise
        if protocol is None:
            client.close()
            return
        self._number += 1
        kind = _UNIXTransport if local else _TCPTransport
        transport = kind(client, protocol, peer, self, self._number, self.reactor)  # type: ignore[arg-type]
        try:
            protocol.makeConnection(transport)
        except BaseException:
            transport.abortConnection()  # type: ignore[no-untyped-call]
            raise
