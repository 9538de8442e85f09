"""Connection for coroutines: it reads on demand, and its writes wait while the buffer is full."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from svcd.errors import ServerError

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["Stream", "cause"]

#: Descriptions of some reasons of OpenSSL, for users of a client.
_MEANINGS = {
    "wrong version number": "the server does not use TLS on this port",
    "packet length too long": "the server does not use TLS on this port",
    "tlsv13 alert certificate required": "the server requires a client certificate: --cert",
    "tlsv1 alert unknown ca": "the server does not know the issuer of the client certificate",
    "tlsv1 unrecognized name": "the server has no certificate for this name: --name",
    "tlsv1 alert protocol version": "the server requires another version of TLS",
}


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Stream(Protocol):
    """Connection to a server. It holds the bytes of a single read, and pauses reading until they are taken.

    Args:
        secure: whether the transport is TLS.

    Attributes:
        ready: fires when the connection can be used, after the handshake, or when it is lost before.
        lost: the reason of the loss of the connection; None if the connection was closed in good order.
        seconds: the time of the lookup, the connect and the handshake; set by connect().
        problems: the problems of the server's certificates; set by connect().
        half_closes: whether a half-close is possible, after which the server can still answer.
    """

    def __init__(self, *, secure: bool = False) -> None:
        self.ready: Deferred[None] = Deferred()
        self.half_closes = False
        self.seconds: dict[str, float] = {}
        self.problems: list[str] = []
        self._secure = secure
        self._pieces: list[bytes] = []
        self._reader: Deferred[bytes] | None = None
        self._writer: Deferred[None] | None = None
        self._full = self._input_ended = self._closing = False
        self.lost: BaseException | None = None

    # Called by the transport.

    def connectionMade(self) -> None:
        """Set up the transport; without TLS, mark the connection as usable."""
        transport: Any = self.transport
        if isinstance(transport.getPeer(), IPv4Address | IPv6Address):
            # Nagle's algorithm would delay short lines, each of which the server answers.
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        if not self._secure:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """Mark the connection as usable."""
        transport: Any = self.transport
        # Before TLS 1.3 a receiver of close_notify had to close at once (RFC 5246, 7.2.1; RFC 8446, 6.1).
        self.half_closes = not self._secure or transport.getHandle().get_protocol_version_name() == "TLSv1.3"
        self.ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Pass received bytes to the waiting reader, or keep them for the next."""
        self._pieces.append(data)
        if self._reader is None:
            self._pause(True)
        else:
            self._deliver()

    def readConnectionLost(self) -> None:
        """Handle the server's half-close."""
        self._input_ended = True
        self._deliver()

    def writeConnectionLost(self) -> None:
        """Do nothing: the half-close is sent."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Record the reason, and resume the waiting reader and writer."""
        early = not self.ready.called
        if early or not (self._input_ended or reason.check(error.ConnectionDone)):
            self.lost = reason.value
        self._input_ended = self._closing = True
        self._deliver()
        self.resumeProducing()
        if early:
            self.ready.callback(None)

    def pauseProducing(self) -> None:
        """Make writers wait: the buffer is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Resume the waiting writer: the buffer is empty."""
        self._full = False
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.callback(None)

    def stopProducing(self) -> None:
        """Do nothing: connectionLost() follows."""

    # Called by a client.

    def read(self) -> Deferred[bytes]:
        """Return a Deferred with the next bytes, empty at the end. Only one read at a time is allowed.

        The Deferred fails with ServerError if the connection was lost.
        """
        self._reader = Deferred(self._cancelled)
        reader = self._reader
        self._deliver()
        if self._reader is not None:
            self._pause(False)
        return reader

    async def write(self, data: bytes) -> None:
        """Send bytes, and return when there is room for more."""
        transport: Any = self.transport
        if not self._closing:
            transport.write(data)
        if self._full:
            self._writer = Deferred()
            await self._writer

    def end(self) -> None:
        """Half-close the connection (shutdown(2))."""
        transport: Any = self.transport
        if not self._closing:
            self._closing = True
            transport.unregisterProducer()
            # A TLS transport sends close_notify, and reads until the server's own close_notify.
            (transport.loseConnection if self._secure else transport.loseWriteConnection)()

    def close(self) -> None:
        """Close the connection."""
        transport: Any = self.transport
        self._closing = True
        transport.unregisterProducer()
        transport.loseConnection()

    def _cancelled(self, _: object) -> None:
        self._reader = None

    def _pause(self, pause: bool) -> None:
        transport: Any = self.transport
        if not self._input_ended:
            (transport.pauseProducing if pause else transport.resumeProducing)()

    def _deliver(self) -> None:
        reader = self._reader
        if reader is None or not (self._pieces or self._input_ended):
            return
        self._reader = None
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            reader.callback(b"".join(pieces))
        elif self.lost is not None:
            reader.errback(ServerError(cause(self.lost)))
        else:
            reader.callback(b"")


def _explained(reason: str) -> str:
    meaning = _MEANINGS.get(reason)
    return f"{reason} ({meaning})" if meaning else reason


def cause(problem: BaseException) -> str:
    """Return the reason of a failed or lost connection as a short text."""
    number = getattr(problem, "osError", None)
    if number:
        return os.strerror(number)
    if isinstance(problem, error.ConnectionDone):
        return "the server has closed the connection"
    if isinstance(problem, error.ConnectionLost):
        return "the connection to the server was lost"
    stack = problem.args[0] if problem.args else None
    if isinstance(stack, (list, tuple)):
        # Errors of OpenSSL are tuples (library, function, reason).
        return "TLS: " + ("; ".join(_explained(str(entry[-1])) for entry in stack) or "the connection was lost")
    return str(problem).removesuffix(".")
