"""Upper-case echo: the letters a to z come back as A to Z, every other byte as it is."""

from __future__ import annotations

from svcd.protocols.base import BuiltinFactory, Responder

__all__ = ["UpperFactory", "UpperProtocol"]


class UpperProtocol(Responder):
    """Sends back what it receives, in capitals. Its back-pressure is the echo's."""

    def connectionMade(self) -> None:
        """Tie the two directions together."""
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Send it back in capitals; bytes.upper knows ASCII alone."""
        self.transport.write(data.upper())


class UpperFactory(BuiltinFactory):
    """Makes UpperProtocols."""

    protocol = UpperProtocol
