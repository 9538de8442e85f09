"""Listening ports for any reactor that watches descriptors.

They can be paused, and never close a waiting client. Twisted's own ports close clients when descriptors are exhausted,
log the start and the stop of each port, and omit the scope of an IPv6 peer.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import succeed
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.net.peer_credentials import unix_peer
from svcd.net.stream_sockets import accept_batch
from svcd.net.twisted_addresses import socket_host, stream_address
from svcd.sockets.epoll_transports import open_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.interfaces import ConnectionHandler, FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["BATCH", "BasePort", "DescriptorPort", "StreamPort"]

#: The maximum number of connections or datagrams that are handled before other descriptors are served.
BATCH = 64


@implementer(IReadDescriptor)
class BasePort:
    """Base class of ports: a bound socket that the reactor watches until listening stops.

    Args:
        reactor: watches the socket.
        sock: the bound socket. It stays open when listening stops; the caller keeps ownership.
    """

    _log = Logger()

    def __init__(self, reactor: FdReactor, sock: socket.socket) -> None:
        self.reactor = reactor
        self.socket = sock
        self.connected = False

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix for log messages of the reactor."""
        return type(self).__name__

    def pause(self) -> None:
        """Stop reading: clients and datagrams wait in the kernel's queue."""
        self.reactor.removeReader(self)

    def resume(self) -> None:
        """Resume reading, if the port listens."""
        if self.connected:
            self.reactor.addReader(self)

    def doRead(self) -> None:
        """Handle the readiness of the socket."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """Handle the removal of the socket by the reactor, after an unexpected error of the listening socket."""
        self._log.failure("listening ended", reason)
        self.connected = False

    def startListening(self) -> None:
        """Start watching the socket."""
        self.connected = True
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; the socket stays open."""
        self.connected = False
        self.pause()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Return the address of the socket."""
        return socket_host(self.socket)


class _AcceptingPort(BasePort):
    """Port that accepts connections.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        may_accept: returns whether a connection may be accepted, or how many; called before each connection.
        on_exhausted: called when the system lacks descriptors or memory.
    """

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        may_accept: Callable[[], int],
        on_exhausted: Callable[[], None],
    ) -> None:
        super().__init__(reactor, sock)
        self._may_accept = may_accept
        self._on_exhausted = on_exhausted
        self._family = int(sock.family)

    def resume(self) -> None:
        """Resume accepting, unless no connection may be accepted: waiting clients would wake the reactor repeatedly."""
        if self._may_accept():
            super().resume()

    def doRead(self) -> None:
        """Accept the waiting connections, up to a batch."""
        if not self._is_open():
            return
        for fd, sockaddr in accept_batch(self.socket, BATCH, self._on_exhausted):
            try:
                self._accepted(fd, sockaddr, self._family)
            except Exception:  # noqa: BLE001 - an error of a connection must not stop the others
                self._log.failure("a connection could not be served")
            if not self._is_open():
                return

    def _is_open(self) -> bool:
        return self.connected and bool(self._may_accept())

    def _accepted(self, fd: int, sockaddr: Any, family: int) -> None:  # noqa: ANN401 - a socket address
        """Serve an accepted connection. Takes ownership of fd."""
        raise NotImplementedError


@implementer(IListeningPort)
class StreamPort(_AcceptingPort):
    """Listening port of a service that runs in the daemon.

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        factory: builds the protocols.
        may_accept: returns whether a connection may be accepted, or how many; called before each connection.
        on_exhausted: called when the system lacks descriptors or memory.
    """

    # repr() of Twisted's Server reads it.
    _realPortNumber: int | None = None

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        on_exhausted: Callable[[], None],
    ) -> None:
        super().__init__(reactor, sock, may_accept, on_exhausted)
        self._factory = factory
        self._number = 0

    def adopt(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve an accepted connection. Takes ownership of fd, also if this raises.

        Args:
            fd: the stream socket.
            sockaddr: the client's socket address.
            family: the family of the socket; with a PROXY header the family of the client may differ.
            proxy_header: the PROXY header of the connection, if it has one.
        """
        try:
            local = family == socket.AF_UNIX and not isinstance(sockaddr, tuple)
            protocol = self._factory.buildProtocol(unix_peer(fd, sockaddr) if local else stream_address(sockaddr))
        except BaseException:
            os.close(fd)
            raise
        if protocol is None:
            os.close(fd)
            return
        self._number += 1
        open_stream(self.reactor, fd, sockaddr, family, protocol, proxy_header, self, self._number)

    _accepted = adopt


@implementer(IListeningPort)
class DescriptorPort(_AcceptingPort):
    """Listening port of a service that handles the descriptors of its connections, such as a spawned service.

    It pauses itself when no connection may be accepted, until resume().

    Args:
        reactor: watches the socket.
        sock: the listening socket, non-blocking.
        take: called with the descriptor of each accepted connection, which it takes ownership of, the client's socket
            address and the family.
        may_accept: returns whether a connection may be accepted, or how many; called before each connection.
        on_exhausted: called when the system lacks descriptors or memory.
        adopt: called for a connection that was accepted elsewhere, with its PROXY header if there is one; `take` by
            default.

    Attributes:
        adopt: as given.
    """

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        take: Callable[[int, Any, int], object],
        may_accept: Callable[[], int],
        on_exhausted: Callable[[], None],
        adopt: ConnectionHandler | None = None,
    ) -> None:
        super().__init__(reactor, sock, may_accept, on_exhausted)
        self._accepted = take  # type: ignore[assignment, method-assign]
        self.adopt = adopt or take

    def doRead(self) -> None:
        """Accept the waiting connections, up to a batch, and pause if no further connection may be accepted."""
        super().doRead()
        if not self._may_accept():
            self.pause()
