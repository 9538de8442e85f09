"""Base classes of the built-ins: half-close, lingering close, protocols with a single answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from svcd.interfaces import DatagramTransport, StreamTransport

__all__ = [
    "LINGER_BYTES",
    "LINGER_SECONDS",
    "BuiltinDatagrams",
    "BuiltinFactory",
    "HalfCloseProtocol",
    "LingeringProtocol",
    "OneShotDatagramProtocol",
    "OneShotFactory",
    "OneShotProtocol",
]

#: Time that the client has to close its side after the kernel has taken the last byte of the answer, in seconds.
LINGER_SECONDS = 2.0
#: Amount of data that the client may still send in that time, in bytes.
LINGER_BYTES = 65_536


class BuiltinFactory(Factory):
    """A factory that writes no lines of its own to the log.

    Attributes:
        stopped: whether all listeners have stopped, so that a client can't connect again.
    """

    noisy = False
    stopped = False

    @property
    def evictable(self) -> int:
        """The number of open connections that evict() may close."""
        return 0

    def evict(self) -> bool:
        """Close a connection, if possible, to free a descriptor for another; return whether a connection was closed."""
        return False

    def startFactory(self) -> None:
        """Handle the start of the first listener."""
        self.stopped = False

    def stopFactory(self) -> None:
        """Handle the stop of the last listener."""
        self.stopped = True


@implementer(IHalfCloseableProtocol)
class HalfCloseProtocol(Protocol):
    """A stream protocol whose client may half-close: received data is answered, then the connection is closed.

    With a plain Twisted protocol, unsent answers are lost at the client's FIN.
    """

    transport: StreamTransport  # type: ignore[assignment]

    def readConnectionLost(self) -> None:
        """Handle the end of the client's data: send what is buffered, then close the connection."""
        # A transport does not close before its producer is unregistered, and no more data will be produced.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the client has to close its side."""


class LingeringProtocol(HalfCloseProtocol):
    """A HalfCloseProtocol that can close the connection before its client does.

    Closing a socket with unread input resets the connection, and the client may lose the answer (RFC 1122, 4.2.2.13).
    So the write side is closed first, and input is read and dropped, for LINGER_SECONDS and LINGER_BYTES at most.
    """

    clock: IReactorTime
    #: Whether the answer is complete, so that input is dropped.
    lingering = False
    _last_call: IDelayedCall | None = None
    _dropped = 0

    def linger(self) -> None:
        """Close the write side after the buffered data; the connection is closed when the client closes its side."""
        self.lingering = True
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()

    def writeConnectionLost(self) -> None:
        """Start the timeout of the lingering close: the kernel has taken all data."""
        if self.lingering:
            # After close(2) the kernel still delivers the data that it has.
            self._last_call = self.clock.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def drop(self, data: bytes) -> None:
        """Drop input; close the connection after LINGER_BYTES."""
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:  # noqa: ARG002 - Twisted's signature
        """Cancel the timer of the lingering close."""
        if self._last_call is not None and self._last_call.active():
            self._last_call.cancel()


class OneShotProtocol(LingeringProtocol):
    """A protocol that sends an answer when a client connects, ignores input, and closes the connection."""

    factory: OneShotFactory

    def connectionMade(self) -> None:
        """Send the answer."""
        self.clock = self.factory.clock
        self.transport.write(self.factory.answer())
        self.linger()

    def dataReceived(self, data: bytes) -> None:
        """Drop input."""
        self.drop(data)


class OneShotFactory(BuiltinFactory):
    """A factory of OneShotProtocols.

    Args:
        answer: returns the answer for a client, as bytes.
        clock: the reactor, for the lingering close.
    """

    protocol = OneShotProtocol  # type: ignore[assignment]

    def __init__(self, answer: Callable[[], bytes], clock: IReactorTime) -> None:
        self.answer = answer
        self.clock = clock


class BuiltinDatagrams(DatagramProtocol):
    """A datagram protocol that writes no lines of its own to the log."""

    noisy = False
    transport: DatagramTransport  # type: ignore[assignment]


class OneShotDatagramProtocol(BuiltinDatagrams):
    """A datagram protocol whose answer does not depend on the content of the received datagram.

    Args:
        answer: returns the answer, as bytes.
    """

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def datagramReceived(self, datagram: bytes, addr: object) -> None:  # noqa: ARG002 - Twisted's signature
        """Send the answer to the sender."""
        self.transport.write(self._answer(), addr)
