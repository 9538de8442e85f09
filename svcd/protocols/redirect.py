"""Passing connections on to another server, in both directions, each with its own end and its own speed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from svcd.protocols.base import BuiltinFactory

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
    from twisted.python.failure import Failure

    from svcd.interfaces import Descriptors, StreamTransport

__all__ = ["RedirectFactory", "RedirectProtocol"]


@implementer(IHalfCloseableProtocol)
class _Side(Protocol):
    """One of two connections that are one.

    Each is the producer of the other's transport: when its peer does not take what comes, the other peer is not
    read from. So a pair costs what two transports buffer, whatever its ends do.
    """

    transport: StreamTransport  # type: ignore[assignment]
    other: _Side | None = None
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

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """This connection is gone, and with it the reason for the other."""
        other, self.other = self.other, None
        if other is None:
            return
        other.other = None
        other.transport.unregisterProducer()
        local = not hasattr(self.transport.getPeer(), "port")
        if reason.check(error.ConnectionDone) or (local and self.heard_all):
            # In good order. A UNIX socket that is closed behind its last byte is told as a loss (POLLHUP in poll(2)).
            other.transport.loseConnection()
        else:
            other.transport.abortConnection()


class _ServerSide(_Side):
    """The connection to the other server."""

    release: Callable[[], None] | None = None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """It is gone, and its descriptor is free."""
        if self.release is not None:
            self.release()
        super().connectionLost(reason)


class _ServerSideFactory(Factory):
    protocol = _ServerSide
    noisy = False


class RedirectProtocol(_Side):
    """A client's connection.

    Nothing is read from the client before the other server has accepted: what it sends meanwhile waits in the kernel.

    Attributes:
        failure_text: why the other server could not be had; the gate logs it.
    """

    factory: RedirectFactory
    failure_text = ""

    def connectionMade(self) -> None:
        """Connect to the other server."""
        self._gone = self._too_late = False
        self._early: list[bytes] = []
        self.transport.pauseProducing()
        factory = self.factory
        factory.descriptors.acquire()
        self._attempt: Deferred[Any] = factory.endpoint.connect(_ServerSideFactory())
        self._patience = factory.clock.callLater(factory.timeout, self._give_up)
        self._attempt.addCallbacks(self._connected, self._failed)

    def dataReceived(self, data: bytes) -> None:
        """Pass it on; a piece that was read before the transport could be stopped is kept."""
        if self.other is None and not self._gone:
            self._early.append(data)
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The client is gone."""
        self._gone = True
        self._attempt.cancel()
        super().connectionLost(reason)

    def _give_up(self) -> None:
        self._too_late = True
        self._attempt.cancel()

    def _tried(self) -> None:
        if self._patience.active():
            self._patience.cancel()

    def _connected(self, server: _ServerSide) -> None:
        self._tried()
        server.release = self.factory.descriptors.release
        self.other, server.other = server, self
        set_no_delay = getattr(server.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            # The client, or its program, knows when to send small pieces; to wait for more costs it time.
            set_no_delay(True)
        server.transport.registerProducer(self.transport, True)
        self.transport.registerProducer(server.transport, True)
        for data in self._early:
            server.transport.write(data)
        self._early.clear()
        if self.heard_all:
            self.readConnectionLost()
        else:
            self.transport.resumeProducing()

    def _failed(self, failure: Failure) -> None:
        self._tried()
        self.factory.descriptors.release()
        if not self._gone:
            too_late = self._too_late or failure.check(error.TimeoutError)
            reason = "it does not answer" if too_late else _reason(failure.value)
            self.failure_text = f"can't connect to {self.factory.name}: {reason}"
            self._gone = True
            self.transport.loseConnection()


def _reason(cause: BaseException | None) -> str:
    if isinstance(cause, error.DNSLookupError):
        return "its name is not known"
    if isinstance(cause, error.ConnectError) and cause.osError:
        return os.strerror(cause.osError)
    return str(cause)


class RedirectFactory(BuiltinFactory):
    """Makes RedirectProtocols.

    Args:
        endpoint: connects to the other server; a name is looked up anew each time.
        name: the other server's, for the log.
        timeout: how long that may take, in seconds.
        clock: the reactor.
        descriptors: counts the connections to the other server.
    """

    protocol = RedirectProtocol  # type: ignore[assignment]

    def __init__(
        self, endpoint: IStreamClientEndpoint, name: str, timeout: float, clock: IReactorTime, descriptors: Descriptors
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.timeout = timeout
        self.clock = clock
        self.descriptors = descriptors
