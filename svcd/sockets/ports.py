"""What all ports on a reactor's descriptors share: being watched, resting, and accepting."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.net.peer_credentials import unix_peer
from svcd.sockets.epoll_transports import address_of, open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.interfaces import ConnectionHandler, FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["BATCH", "BasePort", "DescriptorPort", "StreamPort", "accepted"]

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


@implementer(IListeningPort)
class StreamPort(BasePort):
    """Accepts connections of a listening socket.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        factory: builds the protocols.
        may_accept: asked before each accept.
        short: called when the system is short of descriptors or memory.
    """

    # What Twisted's Server reads of its port, for its repr.
    _realPortNumber: int | None = None

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        short: Callable[[], None],
    ) -> None:
        super().__init__(reactor, sock)
        self._factory = factory
        self._may_accept = may_accept
        self._short = short
        self._number = 0

    def resume(self) -> None:
        """Go on, but not while nobody may be accepted: who waits would wake the reactor again and again."""
        if self._may_accept():
            super().resume()

    def _open(self) -> int:
        return self._may_accept() if self.connected else 0

    def doRead(self) -> None:
        """Accept who waits."""
        family = self.socket.family
        for descriptor, peer in accepted(self.socket, self._open, self._short):
            try:
                self.adopt(descriptor, peer, family)
            except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
                self._log.failure("a connection could not be served")

    def adopt(self, descriptor: int, peer: Any, family: int, relay: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection, whoever accepted it; its descriptor is the port's to close from now on.

        Args:
            descriptor: of a stream socket.
            peer: the client.
            family: of the socket; the client's may be another with a relay.
            relay: what a proxy has said of the connection.
        """
        try:
            local = family == socket.AF_UNIX and not isinstance(peer, tuple)
            protocol = self._factory.buildProtocol(unix_peer(descriptor, peer) if local else address_of(peer))
        except BaseException:
            os.close(descriptor)
            raise
        if protocol is None:
            os.close(descriptor)
            return
        self._number += 1
        open_stream(self.reactor, descriptor, peer, family, protocol, relay, self, self._number)


@implementer(IListeningPort)
class DescriptorPort(BasePort):
    """Accepts connections of a listening socket for somebody who wants their descriptors.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        take: gets the descriptor of each connection that is accepted here, its peer's socket address, and its family.
        may_accept: asked before each accept; when it says no the port rests until resume().
        short: called when the system is short of descriptors or memory.
        adopt: the same for connections that somebody else has accepted, with what a proxy has said of them if that is
            known; by default `take`.

    Attributes:
        adopt: as given.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        take: Callable[[int, Any, int], object],
        may_accept: Callable[[], int],
        short: Callable[[], None],
        adopt: ConnectionHandler | None = None,
    ) -> None:
        super().__init__(reactor, sock)
        self._take = take
        self.adopt = adopt or take
        self._may_accept = may_accept
        self._short = short
        self._family = int(sock.family)

    def _open(self) -> int:
        return self._may_accept() if self.connected else 0

    def resume(self) -> None:
        """Go on, but not while nobody may be accepted: who waits would wake the reactor again and again."""
        if self._may_accept():
            super().resume()

    def doRead(self) -> None:
        """Accept who waits."""
        for descriptor, peer in accepted(self.socket, self._open, self._short):
            try:
                self._take(descriptor, peer, self._family)
            except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
                self._log.failure("a connection could not be served")
        if not self._may_accept():
            self.pause()
