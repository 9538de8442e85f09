"""Upper-case echo: the letters a to z are sent back as A to Z, every other byte unchanged."""

from __future__ import annotations

from svcd.protocols.base import BuiltinFactory, HalfCloseProtocol

__all__ = ["UpperFactory", "UpperProtocol"]


class UpperProtocol(HalfCloseProtocol):
    """A protocol that sends back its input in capitals, with the back-pressure of EchoProtocol."""

    def connectionMade(self) -> None:
        """Connect the transport's input to its output."""
        self.transport.registerProducer(self.transport, True)
        write = self.transport.write
        # A lambda is faster than a method. bytes.upper() changes ASCII letters only.
        self.dataReceived = lambda data: write(data.upper())  # type: ignore[method-assign]


class UpperFactory(BuiltinFactory):
    """A factory of UpperProtocols."""

    protocol = UpperProtocol
