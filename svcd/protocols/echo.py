"""Echo (RFC 862): whatever comes goes back."""

from __future__ import annotations

from svcd.protocols.base import BuiltinDatagrams, BuiltinFactory, HalfCloseProtocol

__all__ = ["EchoDatagrams", "EchoFactory", "EchoProtocol"]


class EchoProtocol(HalfCloseProtocol):
    """Sends back exactly what it receives until the client closes.

    The transport is its own producer: when too much of the answer waits, it stops reading the question. So a client
    that never reads costs a full write buffer and what one read brings, not memory without end.
    """

    def connectionMade(self) -> None:
        """Tie the two directions together."""
        self.transport.registerProducer(self.transport, True)
        # Straight from the transport's reading to its writing, without a call of ours between.
        self.dataReceived = self.transport.write  # type: ignore[method-assign]


class EchoFactory(BuiltinFactory):
    """Makes EchoProtocols."""

    protocol = EchoProtocol


class EchoDatagrams(BuiltinDatagrams):
    """Sends each datagram back to where it came from."""

    def startProtocol(self) -> None:
        """Tie the two directions together, as for streams."""
        self.datagramReceived = self.transport.write  # type: ignore[method-assign]

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Send it back."""
        self.transport.write(datagram, addr)
