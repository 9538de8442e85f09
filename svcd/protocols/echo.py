"""Echo (RFC 862): input is sent back."""

from __future__ import annotations

from svcd.protocols.base import BuiltinDatagrams, BuiltinFactory, HalfCloseProtocol

__all__ = ["EchoDatagrams", "EchoFactory", "EchoProtocol"]


class EchoProtocol(HalfCloseProtocol):
    """A protocol that sends back its input until the client closes the connection.

    The transport is its own producer: it stops reading when its write buffer is full. So a client that never reads
    takes the memory of a full write buffer plus that of a read.
    """

    def connectionMade(self) -> None:
        """Connect the transport's input to its output."""
        self.transport.registerProducer(self.transport, True)
        # The transport calls its own write(), without a Python function of svcd in between.
        self.dataReceived = self.transport.write  # type: ignore[method-assign]


class EchoFactory(BuiltinFactory):
    """A factory of EchoProtocols."""

    protocol = EchoProtocol


class EchoDatagrams(BuiltinDatagrams):
    """A datagram protocol that sends each datagram back to its sender."""

    def startProtocol(self) -> None:
        """Connect the transport's input to its output, as for streams."""
        self.datagramReceived = self.transport.write  # type: ignore[method-assign]

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Send a datagram back."""
        self.transport.write(datagram, addr)
