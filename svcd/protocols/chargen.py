"""Character generator (RFC 864)."""

from __future__ import annotations

import itertools

from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from svcd.protocols.base import BuiltinFactory, HalfCloseProtocol, OneShotDatagramProtocol
from svcd.wire import chargen

__all__ = ["ChargenDatagrams", "ChargenFactory", "ChargenProtocol"]


@implementer(IPullProducer)
class ChargenProtocol(HalfCloseProtocol):
    """A protocol that sends the pattern until the client disconnects, and ignores input.

    The next block is written when the last block is sent. All connections share the block, so a client that never reads
    takes no additional memory.
    """

    def connectionMade(self) -> None:
        """Start sending."""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next block."""
        self.transport.write(chargen.BLOCK)

    def stopProducing(self) -> None:
        """Do nothing: no timer or buffer has to be released."""

    def dataReceived(self, data: bytes) -> None:
        """Drop input."""

    def readConnectionLost(self) -> None:
        """Continue sending: a client that has half-closed may still read; a closed client resets the connection."""

    def drain(self) -> None:
        """Close the connection at once: the stream has no end."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class ChargenFactory(BuiltinFactory):
    """A factory of ChargenProtocols."""

    protocol = ChargenProtocol


class ChargenDatagrams(OneShotDatagramProtocol):
    """A datagram protocol that answers with lines of the pattern; each answer begins a line later than the last."""

    def __init__(self) -> None:
        numbers = itertools.count()
        super().__init__(lambda: chargen.datagram(next(numbers)))
