"""Upper-case echo: the letters a to z come back as A to Z, every other byte as it is."""

from __future__ import annotations

from svcd.protocols.base import BuiltinFactory, HalfCloseProtocol

__all__ = ["UpperFactory", "UpperProtocol"]


class UpperProtocol(HalfCloseProtocol):
    """Sends back what it receives, in capitals. Its back-pressure is the echo's."""

    def connectionMade(self) -> None:
        """Tie the two directions together."""
        self.transport.registerProducer(self.transport, True)
        write = self.transport.write
        # The shortest way from the transport's reading to its writing; bytes.upper knows ASCII alone.
        self.dataReceived = lambda data: write(data.upper())  # type: ignore[method-assign]


class UpperFactory(BuiltinFactory):
    """Makes UpperProtocols."""

    protocol = UpperProtocol
