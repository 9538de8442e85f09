"""Listening stream sockets: they accept in short batches, rest when told to, and never turn a client away.

libuv's own listener closes clients when descriptors run out, can't be paused, and gives all its connections one
context. Accepting here and handing the descriptor over costs the same within the measurement's noise.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.reactor.adopt import adopt_connection, finish_coroutines, start_transport
from svcd.reactor.tcp import tcp_address

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.reactor.native import NativeReactor
    from svcd.reactor.proxied import Relay

__all__ = ["Acceptor", "StreamPort", "TCPPort", "UNIXPort"]

#: Connections accepted in one go before others have their turn.
_BATCH = 16

# The client went away while it waited (accept(2)): there is nobody to serve.
_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
# Descriptors or memory are short: wait for some.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Owner(Protocol):
    """A port, as its acceptor sees it."""

    factory: IProtocolFactory

    def may_accept(self) -> int:
        """How many connections may be accepted now; asked before each batch."""

    def short(self) -> None:
        """The system is short of descriptors or memory; accepting goes on when the port says so."""


class Acceptor:
    """Takes connections off a listening socket and puts them on uvloop.

    Args:
        reactor: whose loop serves them.
        sock: the listening socket, non-blocking; stays the owner's.
        owner: the port.
    """

    _log = Logger()

    def __init__(self, reactor: NativeReactor, sock: socket.socket, owner: _Owner) -> None:
        self._reactor = reactor
        self._owner = owner
        # The descriptor alone: a socket object for each connection would cost more than the rest of this.
        self._accept = sock._accept  # type: ignore[attr-defined]  # noqa: SLF001
        self._family = int(sock.family)
        name = sock.getsockname()
        self._where = os.fsdecode(name) if sock.family == socket.AF_UNIX else name[1]
        self._number = 0

    def accept(self) -> None:
        """Accept who waits, up to a batch.

        Raises:
            OSError: the listening socket is of no use.
        """
        begun: list[Coroutine[Any, Any, Any]] = []
        owner = self._owner
        try:
            # They are counted in the loop's next turn: so many, and no more, may be accepted in this one.
            for _ in range(min(_BATCH, owner.may_accept())):
                try:
                    descriptor, name = self._accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _SHORT:
                        owner.short()
                        return
                    if error.errno in _GONE:
                        continue
                    raise
                try:
                    begun.append(
                        start_transport(
                            self._reactor, descriptor, name, self._family, owner.factory, None, owner, self._next(),
                            self._where,
                        )
                    )  # fmt: skip
                except OSError:
                    self._log.failure("a connection could not be served")
                    os.close(descriptor)
        finally:
            if begun:
                self._reactor.loop.call_soon(finish_coroutines, begun)

    def adopt(self, descriptor: int, name: Any, family: int, relay: Relay | None = None) -> None:  # noqa: ANN401 - a socket address
        """Put a connection on uvloop that somebody else accepted; its descriptor is uvloop's from now on.

        Args:
            descriptor: of a stream socket.
            name: the client.
            family: of the socket; the client's may be another with a relay.
            relay: what was said before, by whom the client came.

        Raises:
            OSError: it is gone; the descriptor is closed.
        """
        owner = self._owner
        adopt_connection(
            self._reactor, descriptor, name, family, owner.factory, relay, owner, self._next(), self._where
        )

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number


class _PausablePort:
    """What Twisted's ports become: they accept by an Acceptor, and can rest."""

    factory: Any
    _acceptor: Acceptor | None = None

    def doRead(self) -> None:
        """Somebody waits."""
        if self._acceptor is None:
            self._acceptor = Acceptor(self.reactor, self.socket, self)  # type: ignore[attr-defined]
        self._acceptor.accept()

    def may_accept(self) -> int:
        """A batch, as long as the port listens."""
        return _BATCH if self.connected and not self.disconnecting else 0  # type: ignore[attr-defined]

    def pause(self) -> None:
        """Rest: who comes waits in the kernel's queue."""
        self.stopReading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Go on."""
        if self.may_accept():
            self.startReading()  # type: ignore[attr-defined]

    def short(self) -> None:
        """Do as Twisted's ports do when descriptors run out: close who waits, by the one descriptor kept for that."""
        super().doRead()  # type: ignore[misc]


class TCPPort(_PausablePort, tcp.Port):
    """What listenTCP() gives."""


class UNIXPort(_PausablePort, unix.Port):
    """What listenUNIX() gives."""


@implementer(IListeningPort, IReadDescriptor)
class StreamPort:
    """A quiet port for a socket of one's own, of any family: it logs nothing, and leaves the socket open at the end.

    Args:
        reactor: whose loop serves the connections.
        sock: the listening socket, non-blocking.
        factory: builds the protocols; doStart() and doStop() are its owner's to call.
        may_accept: tells how many connections may be accepted now; asked before each batch.
        short: called when the system is short of descriptors or memory; it is to pause() the port.
    """

    def __init__(
        self,
        reactor: NativeReactor,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        short: Callable[[], None],
    ) -> None:
        self.reactor = reactor
        self.socket = sock
        self.factory = factory
        self.connected = False
        self._may_accept = may_accept
        self.short = short
        self._acceptor = Acceptor(reactor, sock, self)

    def may_accept(self) -> int:
        """How many connections may be accepted now; none if the port does not listen."""
        return self._may_accept() if self.connected else 0

    def startListening(self) -> None:
        """Begin."""
        self.connected = True
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; connections go on."""
        self.connected = False
        self.pause()
        return succeed(None)

    def pause(self) -> None:
        """Rest: who comes waits in the kernel's queue."""
        self.reactor.removeReader(self)

    def resume(self) -> None:
        """Go on, but not while nobody may be accepted: who waits would wake the reactor again and again."""
        if self.may_accept():
            self.reactor.addReader(self)

    def doRead(self) -> None:
        """Somebody waits."""
        self._acceptor.accept()

    def adopt(self, descriptor: int, name: Any, family: int, relay: Relay | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection, whoever accepted it; its descriptor is the port's from now on. See Acceptor.

        Raises:
            OSError: it is gone.
        """
        self._acceptor.adopt(descriptor, name, family, relay)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """The reactor stops, or the socket is of no use."""
        self.connected = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return type(self.factory).__name__

    def getHost(self) -> IAddress:
        """Where it listens."""
        name = self.socket.getsockname()
        return UNIXAddress(name) if self.socket.family == socket.AF_UNIX else tcp_address(name)
