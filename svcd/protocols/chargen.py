"""The character generator (RFC 864)."""

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

    The next block is written when the last one is sent. All connections share the block, so a client that never reads
    takes no memory of its own.
    """

    def connectionMade(self) -> None:
        """Start to send."""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next block."""
        self.transport.write(chargen.BLOCK)

    def stopProducing(self) -> None:
        """Do nothing: the transport produces no more."""

    def dataReceived(self, data: bytes) -> None:
        """Drop input."""

    def readConnectionLost(self) -> None:
        """Go on sending: a client that has closed its side may still read; one that does not resets the connection."""

    def drain(self) -> None:
        """Close the connection at once: the stream has no end that a client could wait for."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class ChargenFactory(BuiltinFactory):
    """A factory of ChargenProtocols."""

    protocol = ChargenProtocol


class ChargenDatagrams(OneShotDatagramProtocol):
    """A datagram protocol that answers by lines of the pattern; each answer begins one line further."""

    def __init__(self) -> None:
        numbers = itertools.count()
        super().__init__(lambda: chargen.datagram(next(numbers)))
