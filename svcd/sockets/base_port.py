"""What all ports on a reactor's descriptors share: being watched, resting, and accepting."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor

__all__ = ["BATCH", "BasePort", "accepted"]

#: Connections accepted, or datagrams read, in one go before other descriptors have their turn.
BATCH = 64

# The client went away while it waited (accept(2)): there is nobody to serve.
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
# Descriptors or memory are short: wait for some.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def accepted(
    listener: socket.socket, may_accept: Callable[[], int], short: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """Accept who waits, up to a batch: the blocking descriptor of each connection, and its peer as the system has it.

    Args:
        listener: the listening socket, non-blocking.
        may_accept: asked before each.
        short: called when the system is short of descriptors or memory.

    Raises:
        OSError: the listening socket is of no use.
    """
    # The descriptor alone: whoever wants a socket object pays for it.
    accept = listener._accept  # type: ignore[attr-defined]  # noqa: SLF001
    for _ in range(BATCH):
        if not may_accept():
            return
        try:
            yield accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _SHORT:
                short()
                return
            if error.errno not in _GONE:
                raise


@implementer(IReadDescriptor)
class BasePort:
    """What all ports share: a socket that the reactor watches until listening stops."""

    _log = Logger()

    def __init__(self, reactor: FdReactor, sock: socket.socket) -> None:
        self.reactor = reactor
        self.socket = sock
        self.connected = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return type(self).__name__

    def pause(self) -> None:
        """Rest: what comes waits in the kernel's queue."""
        self.reactor.removeReader(self)

    def resume(self) -> None:
        """Go on."""
        if self.connected:
            self.reactor.addReader(self)

    def doRead(self) -> None:
        """The socket is ready."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the socket up, after an error that a listening socket should not have."""
        self._log.failure("listening ended", reason)
        self.connected = False

    def startListening(self) -> None:
        """Begin; the socket is bound already."""
        self.connected = True
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; the socket itself stays its owner's to close."""
        self.connected = False
        self.pause()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Where it listens."""
        name = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return UNIXAddress(name)
        kind = IPv4Address if self.socket.family == socket.AF_INET else IPv6Address
        return kind("TCP" if self.socket.type == socket.SOCK_STREAM else "UDP", *name[:2])
