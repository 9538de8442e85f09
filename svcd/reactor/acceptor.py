"""Listening stream sockets, and uvloop transports for connected sockets.

Ports accept in short batches, can be paused, and never close a waiting client. libuv's own listener closes clients when
descriptors are exhausted, can't be paused, and has a single context for all its connections. Accepting connections here
and passing their descriptors to libuv takes no measurable additional time.

uvloop opens a transport for a socket in the first step of a coroutine. The second step waits for connection_made(),
which the loop calls next, and does nothing else. These coroutines are driven without Tasks, since Twisted's calls must
have their result at once, and a Task would take longer than the transport.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import tcp, unix
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.net.peer_credentials import unix_peer
from svcd.net.stream_sockets import accept_batch
from svcd.net.twisted_addresses import socket_host, tcp_address
from svcd.reactor.proxied import PROXIED_TRANSPORTS
from svcd.reactor.tcp import TCP6Transport, TCPTransport
from svcd.reactor.unix import UNIXTransport

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine, Iterable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.reactor.native import NativeReactor
    from svcd.reactor.proxied import ProxyInfo
    from svcd.reactor.transport import UvTransport

__all__ = [
    "Acceptor",
    "SingleProtocolFactory",
    "SocketPort",
    "TCPPort",
    "UNIXPort",
    "adopt_connection",
    "start_coroutine",
]

#: The maximum number of connections accepted before other descriptors are served.
_BATCH = 16


_TRANSPORTS: dict[int, type[UvTransport]] = {
    socket.AF_INET: TCPTransport,
    socket.AF_INET6: TCP6Transport,
    socket.AF_UNIX: UNIXTransport,
}


def start_coroutine(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run the first step of a coroutine now, and its second step after connection_made().

    Raises:
        OSError: the socket can't be used.
    """
    coroutine.send(None)
    loop.call_soon(finish_coroutines, [coroutine])


def finish_coroutines(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run the second step of coroutines, after connection_made() of each transport."""
    for coroutine in coroutines:
        try:
            coroutine.send(None)
        except (StopIteration, RuntimeError):
            # StopIteration is the end of the coroutine. RuntimeError means that the transport was closed during
            # connection_made(); connectionLost() reports that.
            continue


class _ConnectedSocket:
    """Connected descriptor with the attributes of a socket object that uvloop uses; uvloop closes the descriptor.

    The family is AF_UNIX for all, so that uvloop uses libuv's stream for any descriptor (uv_pipe_open). libuv's stream
    for TCP sets TCP_NODELAY, regardless of the option of the listening socket (tcp(7)), and reads both addresses: three
    unnecessary system calls for each connection.
    """

    __slots__ = ("_fd",)

    type = int(socket.SOCK_STREAM)
    family = int(socket.AF_UNIX)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Do nothing: uvloop has closed the descriptor."""


class SingleProtocolFactory:
    """Factory that returns an existing protocol.

    Args:
        protocol: the protocol.
    """

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, _addr: object) -> IProtocol:
        """Return the protocol."""
        return self._protocol


def start_transport(
    reactor: NativeReactor,
    fd: int,
    sockaddr: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    proxy_header: ProxyInfo | None,
    server: object,
    sessionno: int,
) -> Coroutine[Any, Any, Any]:
    """Make a uvloop transport of a connection. Takes ownership of fd, unless this raises.

    Args:
        reactor: the reactor whose loop runs the connection.
        fd: the connection.
        sockaddr: the client's socket address.
        family: the family of the socket; with a PROXY header the family of the client may differ.
        factory: builds the protocol.
        proxy_header: the PROXY header of the connection, if it has one.
        server: as in UvTransport.
        sessionno: as in UvTransport.

    Returns:
        A coroutine for finish_coroutines() in the next iteration of the loop.

    Raises:
        OSError: the connection is gone.
    """
    peer = tcp_address(sockaddr) if isinstance(sockaddr, tuple) else unix_peer(fd, sockaddr)
    kind: Any = _TRANSPORTS[family] if proxy_header is None else PROXIED_TRANSPORTS[family]
    transport = kind(reactor, fd, factory, peer, server, sessionno)
    if proxy_header is not None:
        transport.proxy_header = proxy_header
    coroutine = reactor.loop.connect_accepted_socket(
        lambda: transport,
        _ConnectedSocket(fd),  # type: ignore[arg-type]
    )
    coroutine.send(None)
    return coroutine


def adopt_connection(
    reactor: NativeReactor,
    fd: int,
    sockaddr: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    proxy_header: ProxyInfo | None,
    server: object,
    sessionno: int,
) -> None:
    """Start the transport of a single connection; see start_transport(). Takes ownership of fd, also if this raises.

    Raises:
        OSError: the connection is gone.
    """
    try:
        coroutine = start_transport(reactor, fd, sockaddr, family, factory, proxy_header, server, sessionno)
    except OSError:
        os.close(fd)
        raise
    reactor.loop.call_soon(finish_coroutines, [coroutine])


class _Owner(Protocol):
    """Interface of a port for its Acceptor."""

    factory: IProtocolFactory

    def may_accept(self) -> int:
        """Return the number of connections that may be accepted now; called before each batch."""

    def on_exhausted(self) -> None:
        """Handle a lack of descriptors or memory; accepting continues when the port resumes."""


class Acceptor:
    """Acceptor of the connections of a listening socket; it starts their transports.

    Args:
        reactor: serves the connections.
        sock: the listening socket, non-blocking. The caller keeps ownership.
        owner: the port.

    Attributes:
        where: the port number or the path of the socket, for messages.
    """

    _log = Logger()

    def __init__(self, reactor: NativeReactor, sock: socket.socket, owner: _Owner) -> None:
        self._reactor = reactor
        self._owner = owner
        self._socket = sock
        self._family = int(sock.family)
        name = sock.getsockname()
        self.where: str | int = os.fsdecode(name) if sock.family == socket.AF_UNIX else name[1]
        self._number = 0

    def accept(self) -> None:
        """Accept the waiting connections, up to a batch.

        Raises:
            OSError: the listening socket can't be used.
        """
        started: list[Coroutine[Any, Any, Any]] = []
        owner = self._owner
        # A connection counts from connection_made(), in the loop's next iteration. So the number of connections that
        # may be accepted does not change in this iteration.
        limit = min(_BATCH, owner.may_accept())
        try:
            for fd, sockaddr in accept_batch(self._socket, limit, owner.on_exhausted):
                try:
                    started.append(
                        start_transport(
                            self._reactor, fd, sockaddr, self._family, owner.factory, None, owner, self._next()
                        )
                    )
                except OSError:
                    self._log.failure("a connection could not be served")
                    os.close(fd)
        finally:
            if started:
                self._reactor.loop.call_soon(finish_coroutines, started)

    def adopt(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyInfo | None = None) -> None:  # noqa: ANN401 - a socket address
        """Start the transport of a connection that was accepted elsewhere. Takes ownership of fd.

        Args:
            fd: the stream socket.
            sockaddr: the client's socket address.
            family: the family of the socket; with a PROXY header the family of the client may differ.
            proxy_header: the PROXY header of the connection, if it has one.

        Raises:
            OSError: the connection is gone; fd is closed.
        """
        owner = self._owner
        adopt_connection(self._reactor, fd, sockaddr, family, owner.factory, proxy_header, owner, self._next())

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number


class _PausablePort:
    """Mixin for Twisted's ports: they use an Acceptor and can be paused."""

    factory: Any
    _acceptor: Acceptor | None = None

    @property
    def where(self) -> str | int | None:
        """The port number or the path of the socket, for messages; None before the first connection."""
        return None if self._acceptor is None else self._acceptor.where

    def doRead(self) -> None:
        """Accept the waiting connections, up to a batch."""
        if self._acceptor is None:
            self._acceptor = Acceptor(self.reactor, self.socket, self)  # type: ignore[attr-defined]
        self._acceptor.accept()

    def may_accept(self) -> int:
        """Return the size of a batch while the port listens, otherwise 0."""
        return _BATCH if self.connected and not self.disconnecting else 0  # type: ignore[attr-defined]

    def pause(self) -> None:
        """Stop accepting: clients wait in the kernel's queue."""
        self.stopReading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Resume accepting, if the port listens."""
        if self.may_accept():
            self.startReading()  # type: ignore[attr-defined]

    def on_exhausted(self) -> None:
        """Accept and close the waiting clients with the reserved descriptor of Twisted's ports, as in Twisted."""
        super().doRead()  # type: ignore[misc]


class TCPPort(_PausablePort, tcp.Port):
    """Port that listenTCP() returns."""


class UNIXPort(_PausablePort, unix.Port):
    """Port that listenUNIX() returns."""


@implementer(IListeningPort, IReadDescriptor)
class SocketPort:
    """Port for a listening socket of any family that the caller has opened.

    It logs nothing, and the socket stays open when it stops.

    Args:
        reactor: serves the connections.
        sock: the listening socket, non-blocking.
        factory: builds the protocols; the caller calls its doStart() and doStop().
        may_accept: returns the number of connections that may be accepted now; called before each batch.
        on_exhausted: called when the system lacks descriptors or memory; it must pause() the port.
    """

    def __init__(
        self,
        reactor: NativeReactor,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        on_exhausted: Callable[[], None],
    ) -> None:
        self.reactor = reactor
        self.socket = sock
        self.factory = factory
        self.connected = False
        self._may_accept = may_accept
        self.on_exhausted = on_exhausted
        self._acceptor = Acceptor(reactor, sock, self)
        self.where = self._acceptor.where

    def may_accept(self) -> int:
        """Return the number of connections that may be accepted now; 0 if the port does not listen."""
        return self._may_accept() if self.connected else 0

    def startListening(self) -> None:
        """Start accepting."""
        self.connected = True
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; open connections continue."""
        self.connected = False
        self.pause()
        return succeed(None)

    def pause(self) -> None:
        """Stop accepting: clients wait in the kernel's queue."""
        self.reactor.removeReader(self)

    def resume(self) -> None:
        """Resume accepting, unless no connection may be accepted: waiting clients would wake the reactor repeatedly."""
        if self.may_accept():
            self.reactor.addReader(self)

    def doRead(self) -> None:
        """Accept the waiting connections, up to a batch."""
        self._acceptor.accept()

    def adopt(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyInfo | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection that was accepted elsewhere. Takes ownership of fd. See Acceptor.adopt().

        Raises:
            OSError: the connection is gone.
        """
        self._acceptor.adopt(fd, sockaddr, family, proxy_header)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Handle the stop of the reactor, or an error of the socket."""
        self.connected = False

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix for log messages of the reactor."""
        return type(self.factory).__name__

    def getHost(self) -> IAddress:
        """Return the address of the socket."""
        return socket_host(self.socket)
