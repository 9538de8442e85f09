"""A last word for who is refused: a text that arrives, and a close that is no reset, whatever the client has sent.

A socket that is closed with unread input resets the connection, and the client may lose the text for it (RFC 1122,
4.2.2.13). So our side is closed first, and what the client still sends is read and dropped until it closes its own.
That costs a descriptor meanwhile, so it is bounded in time, in bytes and in number. Beyond the number 16 KiB of the
text at most are sent and the connection closed at once; they arrive unless the client has sent something.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.interfaces import FdReactor

__all__ = ["LINGER_SECONDS", "LingeringCloser", "RejectProtocol", "send_banner"]

#: How long a client has to take the text and to close, in seconds.
LINGER_SECONDS = 2.0
#: And to go, once the connection was closed on our side with something still unsent, before it is reset.
_RESET_SECONDS = 1.0
#: How much it may still send, in bytes.
_MOST_BYTES = 65_536
#: How many may take their time at once in the whole daemon, and the share of its descriptors.
_MOST = 128
_SHARE = 8
#: What the buffer of a new socket takes at once in any case, in bytes.
_AT_ONCE = 16_384


class LingeringCloser:
    """Everybody in the daemon who is on the way out with a last word.

    Args:
        reactor: watches descriptors and time.
        budget: counts them, since each has a descriptor.

    Attributes:
        open: how many they are.
    """

    def __init__(self, reactor: FdReactor, budget: DescriptorBudget) -> None:
        self.reactor = reactor
        self.open = 0
        self._budget = budget
        self._most = min(_MOST, budget.limit // _SHARE)

    @property
    def crowded(self) -> bool:
        """Whether nobody else may take his time."""
        return self.open >= self._most or self._budget.full

    def enter(self) -> None:
        """One more."""
        self.open += 1
        self._budget.acquire()

    def leave(self) -> None:
        """One less."""
        self.open -= 1
        self._budget.release()

    def close(self, descriptor: int, text: bytes) -> None:
        """Say a text on a connection's descriptor and close it.

        Args:
            descriptor: of a stream socket; ours to close from now on.
            text: short enough for the buffer of a new socket.
        """
        if not text:
            os.close(descriptor)
            return
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)
            sock.send(text, socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client is gone.
            sock.close()
            return
        if self.crowded:
            sock.close()
        else:
            _LingeringSocket(self, sock)


@implementer(IReadDescriptor)
class _LingeringSocket:
    """A socket on which all is said."""

    def __init__(self, lingering_closer: LingeringCloser, sock: socket.socket) -> None:
        self._lingering_closer = lingering_closer
        self._socket = sock
        self._dropped = 0
        lingering_closer.enter()
        lingering_closer.reactor.addReader(self)
        self._timeout = lingering_closer.reactor.callLater(LINGER_SECONDS, self._close)

    def doRead(self) -> None:
        """The client sends something, or closes."""
        try:
            data = self._socket.recv(_MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._dropped += len(data)
        if not data or self._dropped > _MOST_BYTES:
            self._close()

    def _close(self) -> None:
        if self._socket.fileno() < 0:
            return
        if self._timeout.active():
            self._timeout.cancel()
        self._lingering_closer.reactor.removeReader(self)
        self._socket.close()
        self._lingering_closer.leave()

    def connectionLost(self, _reason: Failure) -> None:
        """The reactor stops."""
        self._close()

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "refused"


@implementer(IProtocol, IHalfCloseableProtocol)
class RejectProtocol:
    """The same for a connection that has a transport already.

    Args:
        lingering_closer: whose one it is.
        text: what to say.
    """

    __slots__ = ("_dropped", "_lingering_closer", "_text", "_timeout", "_transport")

    def __init__(self, lingering_closer: LingeringCloser, text: bytes) -> None:
        self._lingering_closer = lingering_closer
        self._text = text
        self._dropped = 0
        # None before and after.
        self._timeout: IDelayedCall | None = None

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Say it, and close our side."""
        self._transport = transport
        lingering_closer = self._lingering_closer
        crowded = lingering_closer.crowded
        # In any case it has a descriptor until it is gone.
        lingering_closer.enter()
        self._timeout = lingering_closer.reactor.callLater(LINGER_SECONDS, self._late)
        if crowded:
            transport.write(self._text[:_AT_ONCE])
            transport.loseConnection()
        else:
            transport.write(self._text)
            transport.loseWriteConnection()

    def connectionMade(self) -> None:
        """Never called: makeConnection does it all."""

    def dataReceived(self, data: bytes) -> None:
        """Nobody wants it."""
        self._dropped += len(data)
        if self._dropped > _MOST_BYTES:
            self._transport.loseConnection()

    def readConnectionLost(self) -> None:
        """The client has closed its side: there is nothing to wait for but the rest of the text."""
        self._transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The text is with the kernel; the client may close now."""

    def _late(self) -> None:
        # With everything sent this is a plain close, after which the kernel goes on to deliver what it has.
        self._transport.loseConnection()
        if self._timeout is not None:
            self._timeout = self._lingering_closer.reactor.callLater(_RESET_SECONDS, self._transport.abortConnection)

    def connectionLost(self, _reason: Failure) -> None:
        """It is gone."""
        timeout, self._timeout = self._timeout, None
        if timeout is None:
            return
        if timeout.active():
            timeout.cancel()
        self._lingering_closer.leave()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "refused"


def send_banner(descriptor: int, text: bytes) -> None:
    """Say a text on a new connection's descriptor, which may be a blocking one, without waiting.

    A new socket's buffer takes what a banner of a spawned service may have (svcd.config.checks), at once. If
    the client is gone already its handler will see that.
    """
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    try:
        with contextlib.suppress(OSError):
            sock.send(text, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()
