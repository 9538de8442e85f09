"""Two connections that are one: bytes go over in both directions, each with its own end and its own speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet import error
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from svcd.interfaces import StreamTransport

__all__ = ["BufferedPipeEnd", "PipeEnd"]


@implementer(IHalfCloseableProtocol, IPushProducer)
class PipeEnd(Protocol):
    """One of two connections that are one.

    Each is the producer for the other's transport: when its peer does not take what comes, the other peer is not
    read from. So a pair costs what two transports buffer, whatever its ends do.

    Attributes:
        other: the other one; None before they have met, and once one of them is gone.
        heard_all: whether this peer will send no more.
    """

    transport: StreamTransport  # type: ignore[assignment]
    other: PipeEnd | None = None
    heard_all = False

    def dataReceived(self, data: bytes) -> None:
        """Pass it on; once the other side is gone, nobody wants it."""
        if self.other is not None:
            self.other.transport.write(data)

    def readConnectionLost(self) -> None:
        """This peer will send no more: tell the other one, behind what is under way to it."""
        self.heard_all = True
        other = self.other
        if other is None:
            return
        # A transport waits for its producer before it closes anything.
        other.transport.unregisterProducer()
        if other.heard_all:
            self.transport.loseConnection()
            other.transport.loseConnection()
        else:
            other.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """This peer has been told that there is no more."""

    def pauseProducing(self) -> None:
        """The other peer does not take what comes."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """It does again."""
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other transport is about to say that it is gone: see leave()."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """This connection is gone, and with it the reason for the other."""
        other, self.other = self.other, None
        if other is None:
            return
        other.other = None
        other.transport.unregisterProducer()
        local = not hasattr(self.transport.getPeer(), "port")
        # A UNIX socket that is closed behind its last byte is told as a loss (POLLHUP in poll(2)).
        other.leave(orderly=bool(reason.check(error.ConnectionDone)) or (local and self.heard_all))

    def leave(self, *, orderly: bool) -> None:
        """The other side is gone, in good order or not."""
        if orderly:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()


class BufferedPipeEnd(PipeEnd):
    """The side that is there first: what it hears before they meet is kept for the other one.

    Attributes:
        early: what that is.
        gone: whether the connection is of no use any more.
    """

    gone = False

    def makeConnection(self, transport: StreamTransport) -> None:
        """The connection is there."""
        self.early: list[bytes] = []
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Pass it on; a piece that was read before the transport could be stopped is kept."""
        if self.other is None and not self.gone:
            self.early.append(data)
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone."""
        self.gone = True
        super().connectionLost(reason)

    def meet(self, other: PipeEnd) -> None:
        """Here is the other side; this one goes on reading, if it rests."""
        self.other, other.other = other, self
        other.transport.registerProducer(self, True)
        self.transport.registerProducer(other, True)
        for data in self.early:
            other.transport.write(data)
        self.early.clear()
        if self.heard_all:
            self.readConnectionLost()
        else:
            self.transport.resumeProducing()
