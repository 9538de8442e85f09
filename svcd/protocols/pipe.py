"""A pipe of two connections: data passes in both directions, which end independently and have separate rates."""

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
    """End of a pipe: one of its two connections.

    Each end is the producer for the other end's transport: while a peer does not take data, reading from the other peer
    is paused. So a pipe takes the memory of the buffers of two transports.

    Attributes:
        other: the other end; None before the ends are connected, and after the loss of one of them.
        input_ended: whether the peer of this end has closed its side.
    """

    transport: StreamTransport  # type: ignore[assignment]
    other: PipeEnd | None = None
    input_ended = False

    def dataReceived(self, data: bytes) -> None:
        """Pass data to the other end; drop it if there is none."""
        if self.other is not None:
            self.other.transport.write(data)

    def readConnectionLost(self) -> None:
        """Close the write side of the other end, after the data that is buffered there."""
        self.input_ended = True
        other = self.other
        if other is None:
            return
        # A transport does not close its write side before its producer is unregistered.
        other.transport.unregisterProducer()
        if other.input_ended:
            self.transport.loseConnection()
            other.transport.loseConnection()
        else:
            other.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the end of the data has been passed to this peer."""

    def pauseProducing(self) -> None:
        """Stop reading from this peer: the other peer does not take data."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading from this peer."""
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the loss of the other connection is handled by other_lost()."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Close the other connection, too."""
        other, self.other = self.other, None
        if other is None:
            return
        other.other = None
        other.transport.unregisterProducer()
        local = not hasattr(self.transport.getPeer(), "port")
        # Twisted reports a UNIX socket that is closed after its last byte as a loss (POLLHUP in poll(2)).
        other.other_lost(orderly=bool(reason.check(error.ConnectionDone)) or (local and self.input_ended))

    def other_lost(self, *, orderly: bool) -> None:
        """Close this connection because the other one is lost.

        Args:
            orderly: whether the other connection was closed in good order; otherwise this connection is reset.
        """
        if orderly:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()


class BufferedPipeEnd(PipeEnd):
    """End of a pipe that is connected first: it keeps its input until the other end is connected.

    Attributes:
        buffered: the input so far, in pieces.
        closed: whether the connection is lost or about to be closed.
    """

    closed = False

    def makeConnection(self, transport: StreamTransport) -> None:
        """Start with an empty buffer."""
        self.buffered: list[bytes] = []
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Pass data to the other end; keep a piece that was read before the transport was paused."""
        if self.other is None and not self.closed:
            self.buffered.append(data)
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Close the other connection, too."""
        self.closed = True
        super().connectionLost(reason)

    def join(self, other: PipeEnd) -> None:
        """Connect the other end: pass the buffered input to it, and resume reading."""
        self.other, other.other = other, self
        other.transport.registerProducer(self, True)
        self.transport.registerProducer(other, True)
        for data in self.buffered:
            other.transport.write(data)
        self.buffered.clear()
        if self.input_ended:
            self.readConnectionLost()
        else:
            self.transport.resumeProducing()
