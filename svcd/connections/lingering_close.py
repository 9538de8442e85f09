"""Lingering close for refused clients: send a banner, shut down the write side, discard input for at most 2 s.

A socket that is closed with unread input resets the connection, and the client may lose the banner (RFC 1122,
4.2.2.13). So the write side is shut down first, and input is read and discarded until the client closes its side. Each
such connection takes a descriptor meanwhile, so its time, its input and the number of connections are limited. Over the
last limit at most 16 KiB of the banner are sent and the connection is closed at once; the client gets them unless it
has sent data.
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

#: Time that a client has to read the banner and to close, in seconds.
LINGER_SECONDS = 2.0
#: Time from the close with unsent data to the reset of the connection, in seconds.
_RESET_SECONDS = 1.0
#: Limit of discarded input, in bytes.
_MAX_DISCARDED = 65_536
#: Limit of lingering connections in the daemon, and the divisor of its descriptors that limits them further.
_MAX_LINGERING = 128
_SHARE = 8
#: Number of bytes that the send buffer of a new socket always takes at once.
_AT_ONCE = 16_384


class LingeringCloser:
    """The lingering connections of the whole daemon.

    Args:
        reactor: watches descriptors and time.
        budget: counts their descriptors.

    Attributes:
        open: number of lingering connections.
    """

    def __init__(self, reactor: FdReactor, budget: DescriptorBudget) -> None:
        self.reactor = reactor
        self.open = 0
        self._budget = budget
        self._max_open = min(_MAX_LINGERING, budget.limit // _SHARE)

    @property
    def crowded(self) -> bool:
        """Whether no other connection may linger."""
        return self.open >= self._max_open or self._budget.full

    def acquire(self) -> None:
        """Count a connection and take one descriptor from the budget."""
        self.open += 1
        self._budget.acquire()

    def release(self) -> None:
        """Uncount a connection and return its descriptor to the budget."""
        self.open -= 1
        self._budget.release()

    def close(self, fd: int, text: bytes, *, answers: bool = False) -> None:
        """Send a banner on a connection and close it.

        Args:
            fd: the descriptor of a stream socket. Takes ownership of it.
            text: the banner, short enough for the send buffer of a new socket; empty to close at once.
            answers: whether to send it only when the client has sent something: clients of HTTP may take a response
                to no request for a fault.
        """
        if not text:
            os.close(fd)
            return
        sock = socket.socket(fileno=fd)
        if answers and not self.crowded:
            sock.setblocking(False)
            _LingeringSocket(self, sock, text)
            return
        try:
            sock.setblocking(False)
            sock.send(text, socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client has closed the connection.
            sock.close()
            return
        if self.crowded:
            sock.close()
        else:
            _LingeringSocket(self, sock)


@implementer(IReadDescriptor)
class _LingeringSocket:
    """Socket whose write side is shut down, until the client closes.

    Args:
        lingering_closer: counts the connection.
        sock: the socket.
        answer: sent when the client has sent something, before the write side is shut down; empty if that is done.
    """

    def __init__(self, lingering_closer: LingeringCloser, sock: socket.socket, answer: bytes = b"") -> None:
        self._lingering_closer = lingering_closer
        self._answer = answer
        self._socket = sock
        self._discarded = 0
        lingering_closer.acquire()
        lingering_closer.reactor.addReader(self)
        self._timeout = lingering_closer.reactor.callLater(LINGER_SECONDS, self._close)

    def doRead(self) -> None:
        """Discard input, or handle the close by the client."""
        try:
            data = self._socket.recv(_MAX_DISCARDED)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._discarded += len(data)
        if not data or self._discarded > _MAX_DISCARDED or not self._send_answer():
            self._close()

    def _send_answer(self) -> bool:
        """Send the answer, unless it is sent; return whether the connection is still open."""
        answer, self._answer = self._answer, b""
        try:
            if answer:
                self._socket.send(answer, socket.MSG_NOSIGNAL)
                self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _close(self) -> None:
        if self._socket.fileno() < 0:
            return
        if self._timeout.active():
            self._timeout.cancel()
        self._lingering_closer.reactor.removeReader(self)
        self._socket.close()
        self._lingering_closer.release()

    def connectionLost(self, _reason: Failure) -> None:
        """Close the socket when the reactor stops."""
        self._close()

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "refused"


@implementer(IProtocol, IHalfCloseableProtocol)
class RejectProtocol:
    """Protocol that does a lingering close on a transport.

    Args:
        lingering_closer: counts the connection.
        text: the banner.
        answers: whether to send it only when the client has sent something (LingeringCloser.close).
    """

    __slots__ = ("_answers", "_discarded", "_lingering_closer", "_text", "_timeout", "_transport")

    def __init__(self, lingering_closer: LingeringCloser, text: bytes, *, answers: bool = False) -> None:
        self._lingering_closer = lingering_closer
        self._text = text
        self._answers = answers
        self._discarded = 0
        # None before the connection is made and after it is lost.
        self._timeout: IDelayedCall | None = None

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Send the banner, and shut down the write side."""
        self._transport = transport
        lingering_closer = self._lingering_closer
        crowded = lingering_closer.crowded
        # Its descriptor is open until connectionLost(), even if it is closed at once.
        lingering_closer.acquire()
        self._timeout = lingering_closer.reactor.callLater(LINGER_SECONDS, self._timed_out)
        if crowded:
            transport.write(self._text[:_AT_ONCE])
            transport.loseConnection()
        elif not self._answers:
            self._send()

    def _send(self) -> None:
        self._answers = False
        self._transport.write(self._text)
        self._transport.loseWriteConnection()

    def connectionMade(self) -> None:
        """Do nothing: makeConnection() is complete in itself."""

    def dataReceived(self, data: bytes) -> None:
        """Discard input."""
        if self._answers:
            self._send()
        self._discarded += len(data)
        if self._discarded > _MAX_DISCARDED:
            self._transport.loseConnection()

    def readConnectionLost(self) -> None:
        """Close the connection after the rest of the banner: the client has closed its side."""
        self._transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the kernel has the banner, and the client has to close."""

    def _timed_out(self) -> None:
        # With no unsent data this is a plain close, after which the kernel still delivers its send buffer.
        self._transport.loseConnection()
        if self._timeout is not None:
            self._timeout = self._lingering_closer.reactor.callLater(_RESET_SECONDS, self._transport.abortConnection)

    def connectionLost(self, _reason: Failure) -> None:
        """Uncount the connection."""
        timeout, self._timeout = self._timeout, None
        if timeout is None:
            return
        if timeout.active():
            timeout.cancel()
        self._lingering_closer.release()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "refused"


def send_banner(fd: int, text: bytes) -> None:
    """Send a banner on the descriptor of a new connection, which may be blocking, without waiting.

    The send buffer of a new socket takes the largest banner of a spawned service (svcd.config.checks) at once. If the
    client has closed the connection, the handler finds it closed.
    """
    sock = socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
    try:
        with contextlib.suppress(OSError):
            sock.send(text, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()
