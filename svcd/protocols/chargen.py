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
    """Sends the pattern until the client goes, and ignores what it sends.

    The next block is written when the last is gone: a client that never reads costs one block, shared by all.
    """

    def connectionMade(self) -> None:
        """Begin."""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next block; the transport has room."""
        self.transport.write(chargen.BLOCK)

    def stopProducing(self) -> None:
        """The connection is gone."""

    def dataReceived(self, data: bytes) -> None:
        """Drop it."""

    def readConnectionLost(self) -> None:
        """The client has no more to say, but it may go on listening: one that is gone resets the connection."""

    def drain(self) -> None:
        """Nothing of this stream is owed to anyone: end it."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()


class ChargenFactory(BuiltinFactory):
    """Makes ChargenProtocols."""

    protocol = ChargenProtocol


class ChargenDatagrams(OneShotDatagramProtocol):
    """Answers each datagram by lines of the pattern, from answer to answer one further."""

    def __init__(self) -> None:
        numbers = itertools.count()
        super().__init__(lambda: chargen.datagram(next(numbers)))
