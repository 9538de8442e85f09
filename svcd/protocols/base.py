"""What the built-ins share: answering a half-closed client, and answering datagrams."""

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

#: How long a connection whose last byte is with the kernel waits for its client to close, in seconds.
LINGER_SECONDS = 2.0
#: How much a client may still send meanwhile, in bytes.
LINGER_BYTES = 65_536


class BuiltinFactory(Factory):
    """A factory that writes no lines of its own into the log.

    Attributes:
        over: whether it has had listeners, and has none any more: who comes again comes to somebody else.
    """

    noisy = False
    over = False

    def startFactory(self) -> None:
        """The first listener begins."""
        self.over = False

    def stopFactory(self) -> None:
        """The last listener is gone."""
        self.over = True


@implementer(IHalfCloseableProtocol)
class HalfCloseProtocol(Protocol):
    """A stream protocol whose client may half-close: what it sent before is answered, then the connection ends.

    A plain Twisted protocol loses its unsent answer at the client's FIN.
    """

    transport: StreamTransport  # type: ignore[assignment]

    def readConnectionLost(self) -> None:
        """The client will send no more: send what is left, then close."""
        # A transport waits for its producer before it closes, and there is nothing left to produce.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed; nothing to do until the client closes its own."""


class LingeringProtocol(HalfCloseProtocol):
    """A Responder that may be the first to close.

    Closing a socket with unread input resets the connection, and the client may lose the answer for it (RFC 1122,
    4.2.2.13). So our side is closed first, and what the client still sends is read and dropped for a bounded while.
    """

    clock: IReactorTime
    #: Whether everything is said, so that input is to be dropped.
    lingering = False
    _last_call: IDelayedCall | None = None
    _dropped = 0

    def linger(self) -> None:
        """Close our side after what was written, and the connection once the client closes its own."""
        self.lingering = True
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()

    def writeConnectionLost(self) -> None:
        """All that was said is with the kernel: from now on the client has so long to close its side."""
        if self.lingering:
            # The close that follows is a plain one, after which the kernel goes on to deliver what it has.
            self._last_call = self.clock.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def drop(self, data: bytes) -> None:
        """Take input that nobody wants."""
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:  # noqa: ARG002 - Twisted's signature
        """The connection is gone."""
        if self._last_call is not None and self._last_call.active():
            self._last_call.cancel()


class OneShotProtocol(LingeringProtocol):
    """Says one thing as soon as a client connects, ignores what it sends, and closes."""

    factory: OneShotFactory

    def connectionMade(self) -> None:
        """Say it."""
        self.clock = self.factory.clock
        self.transport.write(self.factory.answer())
        self.linger()

    def dataReceived(self, data: bytes) -> None:
        """Input has no meaning here."""
        self.drop(data)


class OneShotFactory(BuiltinFactory):
    """Makes Answerers.

    Args:
        answer: makes the answer for one client, in bytes.
        clock: the reactor, for the wait at the end.
    """

    protocol = OneShotProtocol  # type: ignore[assignment]

    def __init__(self, answer: Callable[[], bytes], clock: IReactorTime) -> None:
        self.answer = answer
        self.clock = clock


class BuiltinDatagrams(DatagramProtocol):
    """A datagram protocol that writes no lines of its own into the log."""

    noisy = False
    transport: DatagramTransport  # type: ignore[assignment]


class OneShotDatagramProtocol(BuiltinDatagrams):
    """Answers each datagram by one, made without a look at the question.

    Args:
        answer: makes the answer, in bytes.
    """

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def datagramReceived(self, datagram: bytes, addr: object) -> None:  # noqa: ARG002 - Twisted's signature
        """Answer."""
        self.transport.write(self._answer(), addr)
